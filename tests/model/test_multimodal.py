"""Multimodal bases: the shadow sits in the language model, and what was lent is given back whole."""

import copy

import pytest
import torch
import transformers
from helpers.families import attached, padded, perturb, tiny_model, token_ids
from helpers.family_cases import CONFIG, close, gradients, step_by_step
from helpers.multimodal import FAMILY_OF, KINDS, multimodal_model, text_logits
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from shadowpeft import ShadowConfig, ShadowedModel, UserError, arch, attach

PIXELS = torch.zeros(1, 3, 16, 16)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def shadowed(kind):
    """A perturbed model in evaluation mode; tests that share it only read it."""
    return perturb(attached(multimodal_model(kind), CONFIG)).eval()


def test_every_trained_tensor_gets_a_gradient_and_nothing_else_does(kind):
    whole = multimodal_model(kind)
    model = perturb(attached(whole, CONFIG)).train()
    ids = token_ids(2, 12)
    model(ids, labels=ids).loss.backward()
    found = gradients(model)
    assert found
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    assert [name for name, weight in whole.named_parameters() if weight.grad is not None] == []


@torch.no_grad()
def test_cached_is_uncached_with_padding_on_the_left(shadowed):
    ids, mask, positions = padded([token_ids(1, 12)[0], token_ids(1, 8, seed=1)[0]], "left")
    full = shadowed(ids, attention_mask=mask, position_ids=positions).logits
    for cache in (shadowed.new_cache(), shadowed.new_cache(max_length=16)):
        steps = step_by_step(shadowed, cache, ids, mask, positions, first=5)
        close(steps[mask.bool()], full[mask.bool()])
    out = shadowed.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    grown = torch.ones_like(out[:, 12:])
    again = shadowed(out, attention_mask=torch.cat([mask, grown], dim=1)).logits
    assert torch.equal(again[:, 11:-1].argmax(-1), out[:, 12:])


@torch.no_grad()
def test_the_bare_base_is_the_multimodal_model_on_text(shadowed, kind):
    ids = token_ids(2, 12)
    with shadowed.disabled():
        bare = shadowed(ids).logits
    assert torch.equal(bare, text_logits(multimodal_model(kind), ids))
    assert (shadowed(ids).logits - bare).abs().max() > 0.01


@torch.no_grad()
def test_an_adapter_goes_to_a_folder_and_back_onto_the_checkpoint(shadowed, kind, tmp_path):
    """Catches facts of the base that its own checkpoint does not meet, and a card that loads it wrongly."""
    multimodal_model(kind).save_pretrained(tmp_path / "base")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    model = attached(whole, CONFIG)
    model.adapter.load_state_dict(shadowed.adapter.state_dict())
    model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert f'AutoModelForImageTextToText.from_pretrained("{tmp_path / "base"}")' in card
    assert model.unload() is whole
    again, ids = ShadowedModel.from_pretrained(whole, tmp_path / "adapter"), token_ids(2, 12)
    assert torch.equal(again(ids).logits, shadowed(ids).logits)


@torch.no_grad()
def test_detached_it_is_the_familys_stock_model(shadowed, kind, tmp_path):
    small, ids = shadowed.detached(), token_ids(2, 12)
    assert type(small) is getattr(transformers, arch.FAMILIES[FAMILY_OF[kind]].causal)
    small.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(stock) is type(small)
    want = shadowed(ids, output_shadow_logits=True).shadow_logits
    close(stock(ids).logits, want)


def test_unload_gives_back_the_whole_as_it_was(kind):
    """Catches a language model in place of the whole, and a part that stays frozen or in another type."""
    whole = multimodal_model(kind)
    next(whole.parameters()).requires_grad_(False)
    before = copy.deepcopy(whole)
    model = attached(whole, CONFIG)
    assert not any(weight.requires_grad for weight in arch.decoder_of(model.base).parameters())
    model.train()
    assert model.unload() is whole
    now, then = dict(whole.named_parameters()), dict(before.named_parameters())
    assert {name: weight.requires_grad for name, weight in now.items()} == {
        name: weight.requires_grad for name, weight in then.items()
    }
    assert [name for name, weight in then.items() if not torch.equal(weight, now[name])] == []
    assert [name for name, module in whole.named_modules() if module.training] == []
    assert whole.config.to_dict() == before.config.to_dict()


def test_two_models_on_one_base_are_two_loans_of_it():
    whole = multimodal_model("gemma3")
    first, second = attached(whole, CONFIG), attached(whole, CONFIG)
    assert first.base is second.base
    first.unload()
    assert not whole.lm_head.weight.requires_grad
    second.unload()
    assert whole.lm_head.weight.requires_grad


def test_a_copy_has_a_multimodal_model_of_its_own():
    whole = multimodal_model("gemma3")
    model = attached(whole, CONFIG)
    copied = copy.deepcopy(model)
    theirs = copied.base.model
    given = copied.unload()
    assert given is not whole
    assert given.model.language_model is theirs is not whole.model.language_model
    assert given.lm_head.weight.requires_grad
    assert not whole.lm_head.weight.requires_grad


def test_the_other_parts_go_where_the_language_model_goes():
    """Catches a model given back in two types, or on two devices."""
    model = attached(multimodal_model("gemma3"), CONFIG).to(torch.float64)
    assert {weight.dtype for weight in model.unload().parameters()} == {torch.float64}


def test_the_adapter_alone_is_counted_and_saved_beside_the_language_model():
    whole = multimodal_model("gemma3")
    model = attached(whole, CONFIG)
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if "vision" in name or "projector" in name]
    assert any(weight.requires_grad for weight in whole.model.vision_tower.parameters()), "it is not ours"


@pytest.mark.parametrize(
    "image",
    [
        {"pixel_values": PIXELS},
        {"pixel_values_videos": PIXELS},
        {"mm_encoder_outputs": {"image": None}},
        {"token_type_ids": torch.tensor([[0, 1, 1, 0]])},
        {"mm_token_type_ids": torch.tensor([[0, 1, 1, 0]])},
    ],
    ids=lambda image: next(iter(image)),
)
def test_an_image_in_the_prompt_is_refused(image):
    """Catches an image that the prompt speaks of and nobody looks at."""
    model, ids = attached(multimodal_model("gemma3"), CONFIG).eval(), token_ids(1, 4)
    sentence = f"{next(iter(image))} is not supported: the shadow sits in the language model and reads text"
    for call in (model, model.base_model, model.generate):
        with pytest.raises(UserError, match=sentence):
            call(ids, **image)
        with model.disabled(), pytest.raises(UserError, match=sentence):
            call(ids, **image)


@torch.no_grad()
def test_the_marks_that_a_processor_gives_text_are_taken():
    model, ids = attached(multimodal_model("gemma3"), CONFIG).eval(), token_ids(1, 4)
    marks = {name: torch.zeros_like(ids) for name in ("token_type_ids", "mm_token_type_ids")}
    assert torch.equal(model(ids, **marks).logits, model(ids).logits)
    with model.disabled():
        assert torch.equal(model(ids, **marks).logits, model(ids).logits)
    options = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(ids, **marks, **options), model.generate(ids, **options))


def test_a_text_models_pixels_are_refused_as_well():
    model, ids = attached(tiny_model("gemma3_text"), CONFIG).eval(), token_ids(1, 4)
    with pytest.raises(UserError, match="pixel_values is not supported"):
        model(ids, pixel_values=PIXELS)


def test_three_positions_for_each_token_are_refused():
    model, ids = attached(multimodal_model("qwen3_vl"), CONFIG).eval(), token_ids(1, 4)
    with pytest.raises(UserError, match=r"one position for each token of text, .* \(3, 1, 4\)"):
        model(ids, position_ids=torch.arange(4).expand(3, 1, 4))


def test_a_multimodal_model_that_was_resized_says_so():
    """Catches a base whose embeddings have other rows than the head that answers."""
    whole = multimodal_model("mistral3")
    model, ids = attached(whole, CONFIG).eval(), token_ids(1, 4)
    whole.resize_token_embeddings(101)
    with pytest.raises(UserError, match=r"had 97 tokens when it was lent and now has 101"):
        model(ids)
    with pytest.raises(UserError, match=r"had 97 tokens"):
        model.detached()


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_a_classifier_learns_and_is_given_back(kind, tmp_path):
    whole, ids = multimodal_model(kind, "sequence-classification"), token_ids(2, 12)
    model = perturb(attached(whole, CONFIG)).train()
    model(ids, labels=torch.tensor([0, 2])).loss.backward()
    assert [name for name, gradient in gradients(model).items() if gradient is None] == []
    model.eval().save_pretrained(tmp_path)
    want = model(ids).logits
    assert type(model.detached()).__name__ == arch.FAMILIES[FAMILY_OF[kind]].classifier
    assert model.unload() is whole
    assert torch.equal(ShadowedModel.from_pretrained(whole, tmp_path)(ids).logits, want)


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_vl"])
def test_a_multimodal_model_is_a_shadow_as_well(kind, tmp_path):
    """Catches a shadow whose decoder cannot be read again by its family's name."""
    base, small = multimodal_model(kind), multimodal_model(kind, seed=1, num_hidden_layers=4)
    table = small.get_input_embeddings().weight
    model, ids = attach(base, ShadowConfig(dropout=0.0), small).eval(), token_ids(2, 12)
    assert model.adapter.shadow.embeddings().weight is table
    model = perturb(model).eval()
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(base, tmp_path)
    close(again(ids).logits, model(ids).logits)
    assert type(model.detached()).__name__ == arch.FAMILIES[FAMILY_OF[kind]].causal


def test_attention_is_set_in_base_and_shadow_and_set_back(kind):
    whole = multimodal_model(kind)
    model, ids = perturb(attached(whole, CONFIG)).eval(), token_ids(2, 12)
    want = model(ids).logits
    decoder = arch.decoder_of(model.base)
    stock = decoder.config._attn_implementation
    model.set_attn_implementation("eager")
    assert decoder.config._attn_implementation == "eager"
    close(model(ids).logits, want)
    model.unload()
    assert decoder.config._attn_implementation == stock
