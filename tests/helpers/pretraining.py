"""A small pretraining run: its flags, its settings, and what is read from its folder afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.result import SHADOW, PretrainResult
from shadowpeft.pretrain.run import pretrain
from shadowpeft.storage import shadow_folder

SENTENCES = [
    "what is two plus two, think",
    "you are here in the city",
    "hello hello four systems",
    "the city is two plus four",
]
# Every loss, accumulation, shuffling over blocks of rows, evaluation, and more than one lap of the text.
SETTINGS = {
    "max_steps": 10,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "max_length": 16,
    "shuffle_rows": 8,
    "eval_documents": 4,
    "match": 0.1,
    "top_k": 20,
    "save_steps": 4,
    "eval_steps": 4,
    "logging_steps": 1,
    "device": "cpu",
    "start": "blocks",
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]


def settings(base: Path, data: Path, output: Path, /, **changes) -> PretrainConfig:
    """Return the settings that FLAGS set, with some changed."""
    folders = {"model": str(base), "data": str(data), "output": str(output)}
    return PretrainConfig(**{**folders, **SETTINGS, **changes})


def pretrained(base: Path, data: Path, output: Path, /, **changes) -> PretrainResult:
    """Run the settings that FLAGS set, with some changed, on a text with bad rows."""
    with pytest.warns(UserWarning, match="passed over"):
        return pretrain(settings(base, data, output, **changes))


def copy_run(run: Path, output: Path) -> Path:
    """Copy a finished run, as one that was written to another folder."""
    shutil.copytree(run, output)
    path = output / "run.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace(f"output: {run}\n", f"output: {output}\n"), encoding="utf-8"
    )
    return output


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / shadow_folder.WEIGHTS)


def facts_of(run: Path) -> dict:
    """Return what the shadow's folder keeps of its run."""
    return json.loads((run / SHADOW / shadow_folder.CONFIG).read_text(encoding="utf-8"))["run"]


def logged(output: Path, name: str) -> list[float]:
    entries = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [entry[name] for entry in entries if name in entry]


def assert_same_bits(one: Path, other: Path) -> None:
    left, right = weights_of(one / SHADOW), weights_of(other / SHADOW)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert logged(one, "loss") == logged(other, "loss")
