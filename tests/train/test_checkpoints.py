"""Which checkpoints count, after a kill, a cut-short file, and by number."""

import os
import signal
import subprocess
import sys
import time

from helpers.runs import assert_same_bits

from shadowpeft.cli import main
from shadowpeft.train import checkpoints


def test_killed_run_resumes_bit_for_bit(command, straight, tmp_path):
    """Catches state that only an orderly end would write."""
    slow = "import time, sys; from shadowpeft.train import callbacks\n"
    slow += "callbacks.Progress.on_step_end = lambda *_, **__: time.sleep(0.3)\n"
    slow += "from shadowpeft.cli import main; sys.exit(main(sys.argv[1:]))"
    one_core = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums in another order have other bits
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", slow, *command], env=one_core, **quiet)
    while not checkpoints.is_complete(tmp_path / "run" / "checkpoints" / "checkpoint-4"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert main([*command, "--resume"]) == 0
    assert_same_bits(straight, tmp_path / "run")


def test_incomplete_checkpoint_is_skipped(command, straight, tmp_path, capsys):
    """Catches resuming from files that were cut short."""
    assert main([*command, "--save-steps", "2", "--max-steps", "10"]) == 0
    output = tmp_path / "run"
    state = output / "checkpoints" / "checkpoint-10" / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert main([*command, "--save-steps", "2", "--max-steps", "10", "--resume"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1
    assert "checkpoint-10 is incomplete" in warned[0]
    assert_same_bits(straight, output)


def test_latest_checkpoint_counts_as_numbers(tmp_path):
    """Catches the order of names, in which 9 comes after 10."""
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json"):
            (tmp_path / f"checkpoint-{step}" / name).write_text("{}", encoding="utf-8")
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.latest_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10" / "optimizer.pt").unlink()
    assert not checkpoints.is_complete(tmp_path / "checkpoint-10")
    assert checkpoints.latest_checkpoint(tmp_path / "nowhere") is None
