"""A study of cells that only note that they ran, and one of tiny tasks on a tiny model."""

import json
from pathlib import Path

import pytest
from helpers.families import BLOCKS, tiny_model
from helpers.noted_studies import data, small  # noqa: F401 - fixtures
from helpers.tiny_tasks import TASKS, words_of
from transformers import AutoTokenizer, Qwen3Config

from shadowpeft.compare import run_cell, tasks
from shadowpeft.compare.study import Study
from shadowpeft.embedded import MODEL


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model with a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=96, num_hidden_layers=BLOCKS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    tiny_model("qwen3", config=config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def study(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The settings of a study of two steps, with the tiny tasks known, and with short answers to be timed."""
    monkeypatch.setattr(run_cell, "TIMED_TOKENS", 4)
    for name, task in TASKS.items():
        monkeypatch.setitem(tasks.TASKS, name, task)
    (tmp_path / "wiki_en").mkdir()
    texts = [json.dumps({"text": f"{words_of(i)}. " * 20}) for i in range(4)]
    (tmp_path / "wiki_en" / "validation.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return Study(
        model=tiny, tasks="classes", output=str(tmp_path / "out"), data_dir=str(tmp_path), steps=2,
        batch_size=2, forgetting_rows=3, eval_batch_size=4, shadow_model=tiny, device="cpu", ood=False,
    )  # fmt: skip
