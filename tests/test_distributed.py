"""Training in several processes through the real command line (on a CPU; what NCCL adds is transformers' and torch's)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from shadowpeft.cli import main
from shadowpeft.embedded import CLINC150, MODEL


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, capsys):
    """Catches two processes writing one file, a weight without gradient (which stops DDP), and losses normalised per process."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join((CLINC150 / "train.jsonl").read_text().splitlines()[:40]))
    shared = ["train", "--model", str(MODEL), "--data", str(rows), "--max-steps", "3", "--logging-steps", "1", "--save-steps", "2"]
    shared += ["--device", "cpu", "--shadow.dropout", "0", "--json"]
    assert main([*shared, "--output", str(tmp_path / "one"), "--batch-size", "4"]) == 0
    alone = json.loads(capsys.readouterr().out)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "shadowpeft"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*launch, *shared, "--output", str(tmp_path / "two"), "--batch-size", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads(done.stdout)
    for name in ("train_loss", "shadow_loss", "eval_loss", "eval_shadow_loss"):
        assert together[name] == pytest.approx(alone[name], rel=1e-3), name
    one, two = (load_file(tmp_path / run / "adapter" / "shadow.safetensors") for run in ("one", "two"))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=2e-3), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "one process writes the log"
    assert len([step for step in steps if step == 1]) == 1
