"""Every family from the shell: its checkpoint folder is trained on, answers, is measured and exported."""

from pathlib import Path

import pytest
from helpers.command_line import result
from helpers.exports import stock_logits
from helpers.families import TINY, tiny_config, tiny_model, token_ids
from helpers.multimodal import FAMILY_OF, KINDS, multimodal_model
from helpers.runs import write_rows
from helpers.tokenizers import build_tokenizer

from shadowpeft import arch


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(TINY))
def test_the_shell_takes_a_checkpoint_folder(model_type: str, tmp_path: Path, capsys) -> None:
    """Catches a folder that cannot be loaded, generated with, measured or exported by its files alone."""
    tokens = save_tokens(tmp_path / "base", model_type)
    tiny_model(model_type, config=tiny_config(model_type, **tokens)).save_pretrained(tmp_path / "base")
    exported = every_verb(tmp_path, capsys)
    assert exported.read_text(encoding="utf-8").count(arch.FAMILIES[model_type].causal) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_shell_takes_the_folder_of_a_multimodal_checkpoint(kind: str, tmp_path: Path, capsys) -> None:
    """Catches a checkpoint that AutoModelForCausalLM does not load, and an export of more than its text."""
    tokens = save_tokens(tmp_path / "base", FAMILY_OF[kind])
    multimodal_model(kind, **tokens).save_pretrained(tmp_path / "base")
    exported = every_verb(tmp_path, capsys)
    assert exported.read_text(encoding="utf-8").count(arch.FAMILIES[FAMILY_OF[kind]].causal) == 1


def save_tokens(folder: Path, model_type: str) -> dict[str, int]:
    """Save a tokenizer; return the settings that a model of a family needs to go with it."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    tables = {"vocab_size", "vocab_size_per_layer_input"} & TINY[model_type].keys()
    return {"pad_token_id": 2, "eos_token_id": 1, **dict.fromkeys(tables, len(tokenizer))}


def every_verb(folder: Path, capsys) -> Path:
    """Train on the model in `base`, generate, measure and export; return the exported configuration."""
    base, adapter, small = folder / "base", folder / "run" / "adapter", folder / "small"
    rows = [{"prompt": "what is", "completion": " two"}, {"prompt": "hello", "completion": " four"}] * 2
    data = write_rows(folder / "rows.jsonl", rows)
    # BLOOM's configuration and this tokenizer state no limit.
    length = ["--max-length", 48]
    trained = result(
        ["train", "--model", base, "--data", data, "--output", folder / "run", "--max-steps", 1,
         "--eval-fraction", 0, "--warmup", 0, *length],
        capsys,
    )  # fmt: skip
    assert trained["steps"] == 1
    given = ["--model", base, "--adapter", adapter]
    asked = [*given, "--prompt", "what is", "--max-new-tokens", 3]
    assert len(result(["generate", *asked], capsys)["answers"]) == 1
    measured = result(["eval", *given, "--data", data, "--exact-match", "false", *length], capsys)
    assert measured["loss"] > 0
    result(["export", *given, "--output", small], capsys)
    assert stock_logits(small, input_ids=token_ids(1, 5)).isfinite().all()
    return small / "config.json"
