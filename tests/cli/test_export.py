"""`shadowpeft export`: a stock model, all of it or nothing."""

import torch
from helpers.command_line import mistake, result
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowedModel
from shadowpeft.export import export
from shadowpeft.storage import stock_models


def test_export_is_a_stock_model(base_folder, adapter_folder, tmp_path, capsys):
    """Catches a folder that misses a file, or a model that answers otherwise than the shadow."""
    output = tmp_path / "small"
    summary = result(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", output], capsys
    )
    assert {path.name for path in output.iterdir()} >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert not list(tmp_path.glob(".*")), "nothing is left beside it"
    small = AutoModelForCausalLM.from_pretrained(output)
    shadowed = ShadowedModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base_folder), adapter_folder
    )
    ids = AutoTokenizer.from_pretrained(output)("what is two", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shadowed(ids, output_shadow_logits=True).shadow_logits
        torch.testing.assert_close(small(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert summary["parameters"] == small.num_parameters()
    assert summary["model_class"] == "Qwen3ForCausalLM"
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"{small.num_parameters():,} parameters" in card
    assert "## The run" in card
    assert "base_model:" not in card, "a path says nothing on the hub"
    assert "is not an empty folder" in mistake(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", output], capsys
    )


def test_export_is_all_or_nothing(base_folder, adapter_folder, monkeypatch, tmp_path, capsys):
    """Catches a half-written model folder that looks whole."""

    def full(*_, **__):
        assert not (tmp_path / "small").exists(), "it must not be seen before it is whole"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    said = mistake(
        ["export", "--model", base_folder, "--adapter", adapter_folder, "--output", tmp_path / "small"],
        capsys,
        code=1,
    )
    assert "No space left on device" in said
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert export(str(base_folder), adapter_folder, tmp_path / "small").parameters


class Silent(torch.nn.Linear):
    """A head that gives neither its weights nor an answer, as a quantised one of an unknown kind may."""

    def forward(self, _):
        raise RuntimeError("no kernel for this")


def test_a_head_that_cannot_be_folded_is_a_mistake_of_one_sentence(
    base_folder, adapter_folder, monkeypatch, tmp_path, capsys
):
    """Catches a trace, and a half-written folder, where the base's head is quantised in an unknown way."""
    load = stock_models.load_model

    def quantised(*args, **kwargs):
        base = load(*args, **kwargs)
        base.lm_head.__class__ = Silent
        return base

    monkeypatch.setattr(stock_models, "load_model", quantised)
    words = ["export", "--model", base_folder, "--adapter", adapter_folder]
    said = mistake([*words, "--output", tmp_path / "small"], capsys)
    reason = "this Silent does not give them (no kernel for this)"
    assert f"needs the base's head as plain numbers, and {reason}" in said
    assert list(tmp_path.iterdir()) == []
