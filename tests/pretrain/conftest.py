"""A tiny base, a text, and a finished run, which is built once for all tests of pretraining."""

from pathlib import Path

import pytest
import torch
from helpers.pretraining import FLAGS, SENTENCES, settings
from helpers.runs import (
    one_thread,  # noqa: F401 - a fixture
    save_base,
    write_rows,
)

from shadowpeft.pretrain.run import pretrain


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), num_hidden_layers=4)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory) -> Path:
    """A smaller model with the base's tokenizer."""
    return save_base(tmp_path_factory.mktemp("small"), seed=3, hidden_size=16, num_hidden_layers=2)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    rows = [
        {"text": " ".join(SENTENCES[(number * step) % 4] for step in range(1, 2 + number % 3))}
        for number in range(40)
    ]
    rows[10:10] = [{"text": " "}, {"text": 5}]
    return write_rows(tmp_path_factory.mktemp("data") / "text.jsonl", rows)


@pytest.fixture
def command(base_folder, text_file, tmp_path) -> list[str]:
    paths = {"--model": base_folder, "--data": text_file, "--output": tmp_path / "run"}
    return ["pretrain", *(word for flag, path in paths.items() for word in (flag, str(path))), *FLAGS]


@pytest.fixture(scope="session")
def straight(base_folder, text_file, tmp_path_factory) -> Path:
    """The ten steps of `command` in one go. Tests read the folder and copy it; none writes to it."""
    output = tmp_path_factory.mktemp("straight") / "run"
    threads = torch.get_num_threads()
    # As `one_thread`, which comes later: sums in another order would have other bits.
    torch.set_num_threads(1)
    with pytest.warns(
        UserWarning,
        match=r"1 empty \(the first is .*text.jsonl:11\), 1 undecodable \(the first is .*text.jsonl:12\)",
    ):
        pretrain(settings(base_folder, text_file, output))
    torch.set_num_threads(threads)
    return output
