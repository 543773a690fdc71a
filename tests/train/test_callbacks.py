"""What a run does beside its steps: its bar and its file of metrics."""

import json
import math

import pytest
from transformers import TrainerControl, TrainerState

from shadowpeft.train.callbacks import MetricsFile, Progress


@pytest.fixture
def state() -> TrainerState:
    return TrainerState(global_step=2, max_steps=6, log_history=[{"step": 2, "loss": 0.5}])


def test_the_file_of_metrics_goes_on_from_the_checkpoint(state, tmp_path):
    """Catches entries of steps that a resumed run takes again, and a number that JSON does not have."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 0.5}\n{"step": 4, "loss": 9.0}\n', encoding="utf-8")
    file = MetricsFile(path)
    file.on_train_begin(None, state, TrainerControl())  # type: ignore[arg-type] - neither is read
    state.log_history.append({"step": 3, "loss": math.nan})
    file.on_log(None, state, TrainerControl())  # type: ignore[arg-type]
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": None},
    ]


def test_another_process_writes_no_metrics(state, tmp_path):
    """Catches several processes that write to one file."""
    state.is_world_process_zero = False
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.on_train_begin(None, state, TrainerControl())  # type: ignore[arg-type]
    file.on_log(None, state, TrainerControl())  # type: ignore[arg-type]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_losses_are_printed_where_there_is_no_terminal(state, capsys):
    """Catches a bar in a log file, a learning rate among the losses, and progress on standard output."""
    bar = Progress()
    bar.on_train_begin(None, state, TrainerControl())  # type: ignore[arg-type]
    logs = {"loss": 0.25, "shadow_loss": 1.5, "learning_rate": 0.001, "train_loss": 7.0}
    bar.on_log(None, state, TrainerControl(), logs)  # type: ignore[arg-type]
    bar.on_train_end(None, state, TrainerControl())  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["step 2/6  loss 0.25  shadow_loss 1.5"]
