"""Sources of an export: the shadow of an adapter or a pretrained one, for language models and classifiers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.exports import BOUND, batch, error, made, save_all, shadow_logits, stock_logits
from helpers.families import LABELS, attached, perturb, tiny_config, tiny_model, token_ids
from helpers.tokenizers import CHATML, build_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from shadowpeft.errors import CheckpointError, UserError
from shadowpeft.export import export
from shadowpeft.export.source import Source
from shadowpeft.storage import adapter_folder, shadow_folder
from shadowpeft.storage.base_facts import BaseFacts


@pytest.mark.usefixtures("no_model")
def test_a_source_is_described_by_the_small_files(ready: SimpleNamespace) -> None:
    """Catches a description that reads weights, or that is of the base and not of the shadow."""
    source = Source.inspect(ready.base, ready.adapter, None)
    assert (source.task, source.labels, source.pretrained) == ("causal-lm", None, False)
    assert source.backbone.model_type == "qwen3"
    assert source.backbone.num_hidden_layers == 1
    assert source.tokenizer.get_vocab() == build_tokenizer().get_vocab()


def test_a_folder_without_a_description_is_no_adapter(ready: SimpleNamespace, tmp_path: Path) -> None:
    shutil.copytree(ready.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / adapter_folder.CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"it is not an adapter folder"):
        Source.inspect(ready.base, tmp_path / "adapter", None)


def test_a_classifier_on_a_base_saved_as_language_model(tmp_path: Path) -> None:
    """Catches a score drawn at random in place of the adapter's: users load the base with num_labels and
    train from there."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    build_tokenizer(CHATML).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=LABELS)
    model = perturb(attached(base)).eval()
    model.save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small")
    inputs = batch()
    assert error(stock_logits(tmp_path / "small", **inputs), shadow_logits(model, **inputs)) < BOUND


@pytest.mark.parametrize("how", ["missing", "misshapen"])
def test_a_classifiers_base_must_be_whole(how: str, tmp_path: Path) -> None:
    """Catches a weight other than the head that transformers draws at random, as it does for every one that
    does not fit."""
    model = made(tiny_config("llama"), task="sequence-classification")
    save_all(model, tmp_path)
    state = load_file(tmp_path / "base" / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    left = {key: tensor for key, tensor in state.items() if key != name} | (
        {} if how == "missing" else {name: torch.zeros(3, 3)}
    )
    save_file(left, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 weights of the right shape, such as {name}"):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small")


@pytest.mark.parametrize(
    "shadow_config", [None, lambda: tiny_config("qwen3", hidden_size=16)], ids=["implicit", "explicit"]
)
def test_a_pretrained_shadow_is_exported_alone(
    shadow_config: Callable[[], PretrainedConfig] | None, tmp_path: Path
) -> None:
    """Catches a shadow folder that only an adapter can bring to the edge, or that is folded otherwise than an
    adapter's."""
    model = made(tiny_config("llama"), None if shadow_config is None else shadow_config())
    save_all(model, tmp_path)
    shadow_folder.save(
        model.adapters["default"].shadow, BaseFacts.of(model.base), tmp_path / "shadow", {"corpus": "wiki"}
    )
    result = export(str(tmp_path / "base"), None, tmp_path / "small", shadow=tmp_path / "shadow")
    ids = token_ids(2, 9)
    assert error(stock_logits(tmp_path / "small", input_ids=ids), shadow_logits(model, input_ids=ids)) < BOUND
    assert result.model_class == ("LlamaForCausalLM" if shadow_config is None else "Qwen3ForCausalLM")
    assert "the pretrained shadow `shadow`" in (tmp_path / "small" / "README.md").read_text(encoding="utf-8")
