"""The card of an export: how to load it, and what is known of the shadow's training."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.families import tiny_config, tiny_model

from shadowpeft.export.card import model_card
from shadowpeft.export.source import Source


def source(folder: Path, **changes: object) -> Source:
    given = {
        "base": "some/base",
        "folder": folder,
        "pretrained": False,
        "tokenizer": None,
        "backbone": tiny_config("llama"),
        "task": "causal-lm",
        "labels": None,
        **changes,
    }
    return Source(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("to", "task", "said"),
    [
        ("hf", "causal-lm", ["library_name: transformers", "text-generation", "= AutoModelForCausalLM."]),
        ("hf", "sequence-classification", ["text-classification", "AutoModelForSequenceClassification"]),
        ("gguf", "causal-lm", ["library_name: gguf", "llama-cli -m"]),
    ],
)
def test_the_card_says_how_to_load_the_model(to: str, task: str, said: list[str], tmp_path: Path) -> None:
    model = tiny_model("llama", task)
    card = model_card(source(tmp_path, task=task), model, to, "bfloat16")
    for words in said:
        assert words in card
    assert f"A stock `{type(model).__name__}` of {model.num_parameters():,} parameters in bfloat16" in card
    assert "base_model: some/base\n" in card
    assert ("head folded in" in card) == (task == "causal-lm")


def test_the_run_is_taken_from_the_shadows_card(ready: SimpleNamespace, tmp_path: Path) -> None:
    """Catches a run cut short, and a second line on who wrote the card."""
    (tmp_path / "README.md").write_text(
        "# A\n\n## The run\n\n| steps | 7 |\n\nWritten by shadowpeft 0 (x).\n", encoding="utf-8"
    )
    card = model_card(source(tmp_path, pretrained=True), tiny_model("llama"), "hf", "float32")
    assert "\n## The run\n\n| steps | 7 |\n" in card
    assert card.count("Written by shadowpeft") == 1
    assert "the pretrained shadow" in card


@pytest.mark.parametrize("content", [None, b"no run here", b"\xff\n## The run\n"])
def test_a_shadow_without_a_readable_run_has_none_in_the_card(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "README.md").write_bytes(content)
    assert "## The run" not in model_card(source(tmp_path), tiny_model("llama"), "hf", "float32")
