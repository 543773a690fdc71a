"""A tiny base with a tokenizer in a folder, rows to train it on, and what a run on them left behind."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from helpers.tiny import qwen3_config
from helpers.tokenizers import CHATML, build_tokenizer

WORDS = ["what", "is", "two", "plus", "the city", "hello", "think", "four", "system", "you are"]


def save_base(folder: Path, template: str | None = CHATML, seed: int = 0, **changes) -> Path:
    tokenizer = build_tokenizer(template)
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": len(tokenizer),
        "num_hidden_layers": 3,
        "pad_token_id": 2,
        "eos_token_id": 1,
        **changes,
    }
    AutoModelForCausalLM.from_config(qwen3_config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_rows(count: int) -> list[dict]:
    """Texts of very different lengths: averaging per batch instead of per token would show."""
    return [
        {"text": " ".join(WORDS[(index * step) % 10] for step in range(1, 2 + index % 7 * 2))}
        for index in range(count)
    ]


def adapter_of(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter" / "shadow.safetensors")


def logged(output: Path, name: str = "loss") -> list[float]:
    """The values of one name in the log of a run, in order."""
    entries = [
        json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [entry[name] for entry in entries if name in entry]


def assert_same_bits(one: Path, other: Path) -> None:
    """Hold two runs to the same adapter, bit for bit."""
    left, right = adapter_of(one), adapter_of(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models lose more by sharing work between threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
