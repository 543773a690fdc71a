"""Stock models: they are whole, and what is wrong with one is said in a sentence."""

import shutil

import pytest
import torch
from helpers.families import LABELS, tiny_config, tiny_model
from helpers.multimodal import multimodal_model
from helpers.tokenizers import build_tokenizer
from safetensors.torch import load_file, save_file

from shadowpeft.errors import UserError
from shadowpeft.storage.stock_models import (
    load_classifier,
    load_config,
    load_model,
    load_tokenizer,
    whole_config,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "whole"
    tiny_model("llama").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def without(folder, target, name):
    shutil.copytree(folder, target)
    state = load_file(target / "model.safetensors")
    del state[name]
    save_file(state, target / "model.safetensors", {"format": "pt"})
    return str(target)


def test_a_folder_is_read(whole):
    assert load_config(str(whole)).model_type == "llama"
    assert load_tokenizer(str(whole)).get_vocab() == build_tokenizer().get_vocab()
    model = load_model(str(whole), torch.float64, "eager")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.config._attn_implementation == "eager"
    found, wanted = model.state_dict(), tiny_model("llama").state_dict()
    assert all(torch.equal(found[name], tensor.double()) for name, tensor in wanted.items())


def test_a_weight_that_is_missing_is_named(whole, tmp_path):
    """Catches weights that transformers draws at random."""
    name = "model.layers.1.mlp.up_proj.weight"
    holed = without(whole, tmp_path / "holed", name)
    with pytest.raises(
        UserError, match=f"lacks 1 weights, such as {name}; use a complete causal language model"
    ):
        load_model(holed)
    with pytest.raises(
        UserError, match=f"lacks 1 weights of the right shape, such as {name}; use a complete model"
    ):
        load_classifier(holed, LABELS)


def test_a_classifier_may_lack_its_head_alone(whole):
    """An adapter brings the head, so that of a language model is not missed."""
    classifier = load_classifier(str(whole), LABELS + 2)
    assert classifier.score.weight.shape[0] == LABELS + 2
    found = classifier.model.state_dict()
    assert all(
        torch.equal(found[name], tensor) for name, tensor in tiny_model("llama").model.state_dict().items()
    )


def test_a_tokenizer_that_is_missing_is_said_so(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "mute", ignore=shutil.ignore_patterns("*tokenizer*"))
    with pytest.raises(UserError, match=r"the tokenizer of the folder .*mute cannot be loaded: ") as raised:
        load_tokenizer(str(tmp_path / "mute"))
    assert "\n" not in str(raised.value)


def test_damaged_weights_are_said_so(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "cut")
    raw = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(raw[:100])
    with pytest.raises(UserError, match=r"the model of the folder .*cut cannot be loaded: "):
        load_model(str(tmp_path / "cut"))


@pytest.mark.parametrize("source", ["./whol", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_path_is_not_looked_for_on_the_hub(source):
    with pytest.raises(
        UserError, match=f"there is no model folder {source}; give a folder .* or a hub id such as"
    ):
        load_config(source)


def test_the_models_beside_a_misspelt_folder_are_named(whole):
    with pytest.raises(UserError, match=rf"\(there are: {whole}\), or a hub id such as"):
        load_config(str(whole.parent / "whol"))


def test_a_hub_id_out_of_reach_is_one_sentence_with_a_remedy(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match="the model of the hub id nobody/nothing cannot be loaded: "
    ) as raised:
        load_config("nobody/nothing")
    assert str(raised.value).endswith("access to it, or give a folder with config.json")
    assert "\n" not in str(raised.value)


def test_a_null_that_transformers_does_not_take_is_one_sentence(tmp_path):
    """Catches a trace of transformers' own checks of a configuration."""
    (tmp_path / "config.json").write_text('{"model_type": "gemma", "head_dim": null}', encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be loaded: Validation error for field 'head_dim'") as raised:
        load_config(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_reward_models_folder_is_no_language_model(tmp_path):
    """Catches a head left in the folder, and tied embeddings that answer in its place."""
    config = tiny_config("qwen2", tie_word_embeddings=True)
    tiny_model("qwen2", "sequence-classification", config=config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the checkpoint is a Qwen2ForSequenceClassification, whose head"):
        load_model(str(tmp_path))


def test_of_a_multimodal_folder_the_language_model_is_read(tmp_path):
    multimodal_model("gemma3").save_pretrained(tmp_path / "gemma3")
    multimodal_model("mistral3").save_pretrained(tmp_path / "mistral3")
    assert load_config(str(tmp_path / "mistral3")).model_type == "mistral"
    assert whole_config(str(tmp_path / "mistral3")).model_type == "mistral3"
    model = load_model(str(tmp_path / "mistral3"))
    assert type(model).__name__ == "MistralForCausalLM"
    assert model.config.name_or_path == str(tmp_path / "mistral3")
    assert load_classifier(str(tmp_path / "gemma3"), LABELS).score.weight.shape[0] == LABELS
    with pytest.raises(UserError, match="no sequence classifier of Mistral 3 checkpoints, which are multi"):
        load_classifier(str(tmp_path / "mistral3"), LABELS)


@pytest.mark.parametrize(
    ("name", "said"),
    [("shadow_config.json", r"\(--adapter\)$"), ("pretrained_shadow.json", r"\(--shadow\)$")],
)
def test_a_folder_of_ours_that_is_no_model_is_named(tmp_path, name, said):
    """Catches a user who is sent to look for a model_type in the config.json of an adapter."""
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_config(str(tmp_path))
