"""A short training run through the command line, and what several tests ask of it."""

import os
import signal
from pathlib import Path

import pytest
from helpers.runs import one_thread, save_base, text_rows, write_rows  # noqa: F401 - a fixture

from shadowpeft.cli import main
from shadowpeft.storage import stock_models
from shadowpeft.train import callbacks

# Dropout, evaluation and shuffling; 20 rows in batches of 2 x 2 are 5 steps an epoch.
FLAGS = [
    *("--eval-fraction=0.17", "--epochs=2", "--batch-size=2", "--gradient-accumulation=2"),
    *("--logging-steps=1", "--save-steps=4", "--eval-steps=4", "--learning-rate=0.01", "--device=cpu"),
]


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", text_rows(24))


@pytest.fixture(scope="session")
def ten_steps(base_folder, rows_file) -> list[str]:
    """The command of a run of ten steps, without its output folder."""
    return ["train", "--model", str(base_folder), "--data", str(rows_file), *FLAGS]


@pytest.fixture
def command(ten_steps, tmp_path) -> list[str]:
    return [*ten_steps, "--output", str(tmp_path / "run")]


@pytest.fixture(scope="session")
def straight(ten_steps, one_thread, tmp_path_factory) -> Path:  # noqa: F811 - the fixture
    """The folder of the ten steps in one go; no test may change it."""
    output = tmp_path_factory.mktemp("straight") / "run"
    assert main([*ten_steps, "--output", str(output)]) == 0
    return output


@pytest.fixture
def signal_at(monkeypatch):
    """Send signals to this process at the end of a step."""

    def install(step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                for _ in range(times):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(callbacks.Progress, "on_step_end", on_step_end)

    return install


@pytest.fixture
def no_weights(monkeypatch):
    """Fail if a check comes only after the weights were loaded."""

    def loaded(*_, **__):
        pytest.fail("the model was loaded before the check")

    monkeypatch.setattr(stock_models, "load_model", loaded)
