"""The text path of multimodal models: the same logits of text, bit for bit, out of the same weights."""

import pickle
import weakref

import pytest
import torch
import transformers
from helpers.families import LABELS, padded, tiny_config, token_ids
from helpers.multimodal import FAMILY_OF, KINDS, multimodal_config, multimodal_model, text_logits
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Model

from shadowpeft import UnsupportedModelError, arch
from shadowpeft.arch.multimodal import MULTIMODAL

CLASSIFIERS = [kind for kind in KINDS if MULTIMODAL[kind].classifier is not None]


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    """A multimodal model that tests only read."""
    return multimodal_model(request.param)


@pytest.fixture(scope="module")
def text(whole):
    return arch.text_model_of(whole)


def test_every_kind_has_a_tiny_model_of_its_own():
    """Catches a new row of the table that no test would run."""
    assert {*FAMILY_OF} == {*MULTIMODAL}
    assert {kind: multimodal_config(kind).model_type for kind in KINDS} == {kind: kind for kind in KINDS}


def test_it_is_the_familys_stock_class_on_the_same_weights(whole, text):
    family = arch.FAMILIES[FAMILY_OF[whole.config.model_type]]
    assert type(text) is getattr(transformers, family.causal)
    assert arch.family_of(text) is family
    assert arch.head_of(text) is whole.get_output_embeddings()
    assert arch.token_embedding_of(text) is whole.get_input_embeddings()
    assert not any(weight.is_meta for weight in (*text.parameters(), *text.buffers()))
    known = {id(weight) for weight in whole.parameters()}
    assert {id(weight) for weight in text.parameters()} < known, "and it has no image tower"
    assert text.training == whole.training
    is_tied = arch.head_of(text).weight is arch.token_embedding_of(text).weight
    assert text.config.tie_word_embeddings == is_tied


@torch.no_grad()
def test_its_logits_of_text_are_the_multimodal_models_own(whole, text):
    ids = token_ids(2, 12)
    assert torch.equal(text(ids).logits, text_logits(whole, ids))
    for side in ("left", "right"):
        ids, mask, _ = padded([token_ids(1, 12)[0], token_ids(1, 7, seed=1)[0]], side)
        assert torch.equal(
            text(ids, attention_mask=mask).logits, text_logits(whole, ids, attention_mask=mask)
        )


@torch.no_grad()
def test_it_generates_what_the_multimodal_model_does(whole, text):
    """Catches a cache, positions or a mask of its own, behind padding on the left."""
    ids, mask, _ = padded([token_ids(1, 9)[0], token_ids(1, 6, seed=1)[0]], "left")
    stock = whole.language_model if whole.config.model_type == "llama4" else whole
    found, wanted = (
        model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        for model in (text, stock)
    )
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.logits, wanted.logits, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_on_text_qwen3_vl_is_qwen3():
    """Catches rotary factors that are not Qwen3's: detached and exported, a shadow of it is one."""
    text = arch.text_model_of(multimodal_model("qwen3_vl"))
    stock = type(text)(text.config).eval()
    stock.load_state_dict(text.state_dict())
    ids, mask, positions = padded([token_ids(1, 12)[0], token_ids(1, 7, seed=1)[0]], "left")
    packed = torch.cat([torch.arange(7), torch.arange(5)])[None]
    for given in (
        {},
        {"attention_mask": mask},
        {"attention_mask": mask, "position_ids": positions},
        {"position_ids": packed.expand(2, -1)},
    ):
        assert torch.equal(text(ids, **given).logits, stock(ids, **given).logits)
    one, other = (
        model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False) for model in (text, stock)
    )
    assert torch.equal(one, other)
    assert type(arch.stock_decoder(text)) is type(stock.model)
    assert arch.stock_decoder(text).embed_tokens.weight is text.model.embed_tokens.weight


def test_the_multimodal_model_is_left_as_it_is(whole):
    before = whole.config.to_dict()
    arch.text_config_of(whole.config).vocab_size = 5
    arch.text_config_of(whole.config).rope_parameters.clear()
    assert whole.config.to_dict() == before


@pytest.mark.parametrize("kind", CLASSIFIERS)
@torch.no_grad()
def test_classifiers_keep_their_labels_and_answers(kind):
    whole = multimodal_model(kind, "sequence-classification")
    text, ids = arch.text_model_of(whole), token_ids(2, 12)
    assert type(text).__name__ == arch.family_of(text).classifier
    assert arch.task_of(text) == "sequence-classification"
    assert text.config.num_labels == LABELS
    assert torch.equal(text(ids).logits, whole(ids).logits)


def test_the_same_model_is_returned_until_its_parts_change():
    """Catches two loans of one base, a head that is gone, and a multimodal model kept in memory."""
    whole = multimodal_model("gemma3")
    text = arch.text_model_of(whole)
    held = text.config
    whole.generation_config.max_new_tokens = 7
    whole.config.text_config.pad_token_id = 5
    assert arch.text_model_of(whole) is text
    assert text.config is held
    assert (held.pad_token_id, text.generation_config.max_new_tokens) == (5, 7)
    whole.resize_token_embeddings(101)
    assert arch.text_model_of(whole).lm_head is whole.lm_head
    gone = weakref.ref(whole.model.vision_tower)
    del whole
    assert gone() is None


def test_attention_is_set_in_the_decoder_too(whole):
    text = arch.text_model_of(pickle.loads(pickle.dumps(whole)))
    arch.set_implementations(text, attention="eager")
    assert arch.decoder_of(text).config._attn_implementation == "eager"
    assert text.config._attn_implementation == "eager"


def test_a_configuration_is_that_of_the_language_model(whole, text):
    config = arch.text_config_of(whole.config)
    assert config.to_dict() == {**text.config.to_dict(), "architectures": None}
    assert arch.text_config_of(config) is config
    assert arch.auto_class(whole.config, "causal-lm") is AutoModelForImageTextToText
    assert arch.auto_class(text.config, "causal-lm") is AutoModelForImageTextToText
    assert arch.auto_class(tiny_config("llama"), "causal-lm") is AutoModelForCausalLM


def test_missing_special_tokens_are_taken_from_the_whole():
    config = multimodal_config("mistral3", pad_token_id=None)
    config.pad_token_id = 4
    assert arch.text_config_of(config).pad_token_id == 4


def test_what_is_not_known_is_refused_in_one_sentence():
    config = multimodal_config("mistral3")
    config.text_config = AutoConfig.for_model("mpt")
    with pytest.raises(UnsupportedModelError, match=r"the language model .* \(model_type 'mpt'\) is not"):
        arch.text_config_of(config)
    with pytest.raises(UnsupportedModelError, match="expected a Gemma3ForConditionalGeneration or Gemma3For"):
        arch.text_model_of(Gemma3Model(multimodal_config("gemma3")))
    with pytest.raises(UnsupportedModelError, match="no sequence classifier of Mistral 3 checkpoints"):
        arch.auto_class(config, "sequence-classification")
