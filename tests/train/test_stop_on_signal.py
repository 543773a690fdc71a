"""A run that a signal stops, and how it continues."""

import signal

import pytest
from helpers.runs import assert_same_bits, logged

from shadowpeft.cli import main
from shadowpeft.train import checkpoints


@pytest.mark.parametrize(
    ("step", "number"),
    [(2, signal.SIGINT), (4, signal.SIGTERM)],
    ids=["SIGINT mid-epoch", "SIGTERM at epoch end"],
)
def test_interrupted_run_resumes_bit_for_bit(
    step, number, command, straight, signal_at, monkeypatch, tmp_path, capsys
):
    """Catches lost random states, a wrong place in the data, a stale optimizer, and a step lost by Ctrl-C."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal_at(step, number)
    assert main(command) == 130
    monkeypatch.undo()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    output = tmp_path / "run"
    assert not (output / "adapter").exists()
    assert checkpoints.is_complete(output / "checkpoints" / f"checkpoint-{step + 1}")
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"shadowpeft train: stopped after step {step + 1} and saved; "
        "continue with: shadowpeft train --config "
    )
    assert main(said.partition("continue with: shadowpeft ")[2].split()) == 0
    assert_same_bits(straight, output)
    assert logged(output) == logged(straight)


def test_second_interrupt_acts_at_once(command, signal_at, tmp_path, capsys):
    """Catches a run that cannot be stopped while its last step hangs."""
    signal_at(5, times=2)
    assert main(command) == 130
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == "shadowpeft train: interrupted; what was saved before is kept"
    )
    assert checkpoints.latest_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-4"
