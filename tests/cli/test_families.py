"""Every family from the shell: its checkpoint folder is trained on, answers, is measured and exported."""

from pathlib import Path

import pytest
from helpers.command_line import result
from helpers.exports import stock_logits
from helpers.families import TINY, tiny_config, tiny_model, token_ids
from helpers.runs import write_rows
from helpers.tokenizers import build_tokenizer

from shadowpeft import arch


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(TINY))
def test_the_shell_takes_a_checkpoint_folder(model_type: str, tmp_path: Path, capsys) -> None:
    """Catches a folder that cannot be loaded, generated with, measured or exported by its files alone."""
    base, adapter, small = tmp_path / "base", tmp_path / "run" / "adapter", tmp_path / "small"
    tokenizer = build_tokenizer()
    config = tiny_config(model_type, vocab_size=len(tokenizer), pad_token_id=2, eos_token_id=1)
    tiny_model(model_type, config=config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    rows = [{"prompt": "what is", "completion": " two"}, {"prompt": "hello", "completion": " four"}] * 2
    data = write_rows(tmp_path / "rows.jsonl", rows)
    # BLOOM's configuration and this tokenizer state no limit.
    length = ["--max-length", 48]
    trained = result(
        ["train", "--model", base, "--data", data, "--output", tmp_path / "run", "--max-steps", 1,
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
    assert (small / "config.json").read_text(encoding="utf-8").count(arch.FAMILIES[model_type].causal) == 1
