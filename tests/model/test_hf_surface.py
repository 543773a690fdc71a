"""What transformers asks of a model: methods for adapters, checkpointing, embeddings, labels."""

import inspect
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from helpers.families import attached, perturb, tiny_model, token_ids
from transformers import PreTrainedModel, Trainer, TrainingArguments

from shadowpeft import ShadowedModel, UserError, attach
from shadowpeft.arch import versions
from shadowpeft.shadow.adapter import Adapter


def test_transformers_adapter_verbs_answer_for_ours(model):
    """Catches inherited methods that say no adapter is loaded while one is."""
    assert model.active_adapters() == ["default"]
    for call in (model.enable_adapters, model.disable_adapters, model.disable_adapter):
        with pytest.raises(UserError, match="disabled"):
            call()
    for call in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UserError, match=r"cannot be merged.*detached\(\)"):
            call()


def test_a_plain_trainer_evaluates(model, tmp_path):
    """Catches a forward signature from which the Trainer concludes that batches have no labels."""
    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 9)]
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, max_steps=1, disable_tqdm=True, dataloader_pin_memory=False
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.label_names == ["labels"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        model(token_ids(4, 9), labels=token_ids(4, 9)).loss.item(), rel=1e-4
    )


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_every_property_of_a_transformers_model_answers(model):
    """Catches a property that looks into the model without its head as if it were a module."""
    names = [name for name, value in inspect.getmembers(PreTrainedModel) if isinstance(value, property)]
    assert "dtype" in names
    for name in names:
        getattr(model, name)
    assert (model.supports_tp_plan, model.supports_pp_plan) == (False, False)


def test_a_loss_function_is_refused(model):
    """Catches a loss that is set and never computed."""
    with pytest.raises(UserError, match="takes no loss_function"):
        model.loss_function = lambda logits, labels, **_: logits.sum()


def test_it_is_printed_as_what_it_is(model):
    assert repr(model).startswith("ShadowedModel of Qwen3ForCausalLM(")
    model.unload()
    assert repr(model).startswith("ShadowedModel of ShadowedModel(")


def test_a_trained_model_has_no_name(base, tmp_path):
    """Catches a name by which others would load the bare base as what this model was before training."""
    base.config.name_or_path = "the/base"
    model = attach(base)
    assert model.config.name_or_path == "the/base"
    perturb(model).save_pretrained(tmp_path)
    assert model.train().config.name_or_path == ""
    model.add_adapter("fresh")
    assert model.config.name_or_path == "the/base"
    model.load_adapter(tmp_path, "trained")
    assert model.config.name_or_path == ""
    assert base.config.name_or_path == "the/base"


def test_reentrant_checkpointing_is_refused() -> None:
    """Catches a shadow that silently gets no gradient, because nothing that enters its first block has
    one.
    """
    with pytest.raises(UserError, match="use_reentrant=False"):
        versions.recompute_activations(attached(tiny_model("llama")), use_reentrant=True)


def test_the_vocabulary_belongs_to_the_base(base):
    with pytest.raises(UserError, match="before attach"):
        attach(base).resize_token_embeddings(200)


def test_embeddings_and_head_are_set_on_the_base(model):
    """Catches an error of transformers' that asks the user to write a subclass."""
    for verb in (model.set_input_embeddings, model.set_output_embeddings):
        with pytest.raises(UserError, match="on the base before attach"):
            verb(torch.nn.Embedding(4, 4))


@pytest.mark.parametrize("verb", ["init_weights", "initialize_weights"])
def test_nothing_draws_the_weights_anew(model, verb):
    """Catches transformers' own initialisation, which overwrites what was trained."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(UserError, match="add_adapter"):
        getattr(model, verb)()
    model.post_init()
    model.apply(model._init_weights)
    model.tie_weights()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_classifier_cannot_generate(base):
    """Catches an answer of the class for its models, which are of two tasks."""
    assert ShadowedModel.can_generate()
    assert attach(base).can_generate()
    assert not attached(tiny_model("llama", "sequence-classification")).can_generate()


@pytest.mark.parametrize("family", ["qwen3_moe", "llama", "falcon"])
@torch.no_grad()
def test_an_implementation_reaches_the_base_and_every_shadow(family):
    """Catches a choice that changes the copy of the configuration alone."""
    stock, model = tiny_model(family), attached(tiny_model(family))
    model.add_adapter("b")
    before = model.base.config._attn_implementation, model.base.config._experts_implementation
    for one in (stock, model):
        one.set_attn_implementation("eager")
        one.set_experts_implementation("batched_mm")
    parts = [model, model.base, *(adapter.shadow.backbone for adapter in model.adapters.values())]
    for part in parts:
        assert part.config._attn_implementation == stock.config._attn_implementation
        assert part.config._experts_implementation == stock.config._experts_implementation
    torch.testing.assert_close(model(token_ids(2, 9)).logits, stock(token_ids(2, 9)).logits)
    base = model.unload()
    assert (base.config._attn_implementation, base.config._experts_implementation) == before


def test_copies_for_several_gpus_in_one_process_are_refused(base):
    """Catches copies whose blocks are the first GPU's."""
    with pytest.raises(UserError, match="one process for each GPU"):
        attach(base)._replicate_for_data_parallel()


def test_a_trainers_steps_do_not_look_at_the_weights(base, monkeypatch):
    """Catches a question to the weights at every step, for which a GPU must finish all its work."""
    base.config.name_or_path = "the/base"
    model = perturb(attached(base)).train()
    assert model.config.name_or_path == ""
    monkeypatch.setattr(Adapter, "changes_nothing", lambda _: pytest.fail("the weights were looked at"))
    model.train().eval().train()
    assert model.config.name_or_path == ""


def trained(base: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    """Return what one step of transformers' Trainer makes of a fresh adapter."""
    model = attached(base)
    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 9)]
    arguments = TrainingArguments(
        str(folder), report_to=[], use_cpu=True, max_steps=1, disable_tqdm=True, dataloader_pin_memory=False
    )
    Trainer(model, arguments, train_dataset=rows).train()
    return model.adapter.state_dict()


def test_a_trainer_leaves_a_spread_base_where_it_is(tmp_path):
    """Catches a base that accelerate has spread over memory and disk, and a trainer moves to one device."""
    want, base = trained(tiny_model("llama"), tmp_path), tiny_model("llama")
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    places["model.rotary_emb"] = "cpu"
    dispatch_model(base, places, main_device="cpu", offload_dir=tmp_path / "offload", force_hooks=True)
    found = trained(base, tmp_path)
    assert base.model.layers[0].mlp.gate_proj.weight.is_meta
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, msg=lambda text, name=name: f"{name}: {text}")


def test_only_a_spread_model_has_a_map_of_devices(model):
    """Catches a map where nothing is spread: transformers would then never move the model."""
    with pytest.raises(AttributeError, match="hf_device_map"):
        model.hf_device_map  # noqa: B018 - to ask is the test
    model.base.hf_device_map = {"": 0}
    assert model.hf_device_map == {"base": 0}
    model.base.hf_device_map = {"model": 0, "lm_head": "disk"}
    assert model.hf_device_map == {"base.model": 0, "base.lm_head": "disk"}
    # As accelerate sets it where it spreads the whole.
    model.hf_device_map = {"base": 0, "adapters": "cpu"}
    assert model.hf_device_map == {"base": 0, "adapters": "cpu"}
    model.unload()
