"""DDP and FSDP2 over NCCL on two GPUs: what `tests/train/test_fsdp.py` shows on a CPU, and the fused kernels.

Skipped with fewer GPUs.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed_worker import CASES, STEPS, Trained, train
from helpers.processes import (
    TORCHRUN,
    WORKER,
    accelerate_launch,
    last_losses,
    launch,
    relative_errors,
    same_weights,
    short_run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What came of every case on two GPUs, by way and name."""
    output = tmp_path_factory.mktemp("together") / "results.pt"
    done = launch(TORCHRUN, *WORKER, "cases", str(output))
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(output, weights_only=True)


@cache
def alone(name: str) -> Trained:
    return train(CASES[name], torch.device("cuda"))


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_two_gpus_compute_what_one_does(
    together: dict[tuple[str, str], dict[str, Any]], way: str, name: str
) -> None:
    """Catches what a CPU cannot show: weights freed while a kernel still reads them, and streams that do not
    wait until weights are gathered."""
    wanted, found = alone(name), together[way, name]
    exact = 1e-2 if CASES[name].bf16 else 1e-4
    assert found["losses"] == pytest.approx(wanted.losses, rel=exact)
    for kind in ("gradients", "weights"):
        tensors = {"gradients": wanted.gradients, "weights": wanted.weights}[kind]
        errors = relative_errors(found[kind], tensors)
        assert max(errors.values()) < exact, (kind, max(errors, key=lambda key: errors[key]))
    sweeps = 0 if CASES[name].task == "sequence-classification" else STEPS
    assert found["swept"] == wanted.swept == sweeps, "logits were held"
    # The share of all weights that a process holds between the steps.
    if way == "ddp":
        assert found["kept"] == 1
    else:
        assert found["kept"] < 0.55


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_bf16_run_on_two_gpus_learns_as_on_one(way: str, tmp_path: Path) -> None:
    """Catches documented commands that fail, a wrong resume, and adapters that another precision trained."""
    launcher = {"ddp": TORCHRUN, "fsdp": accelerate_launch(tmp_path)}[way]
    shared = ["-m", "shadowpeft", *short_run(tmp_path), "--bf16"]
    alone = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    one = launch(alone, *shared, "--output", str(tmp_path / "one"), "--batch-size", "4")
    assert one.returncode == 0, one.stderr[-4000:]
    arguments = [*shared, "--output", str(tmp_path / "two"), "--batch-size", "2"]
    two = launch(launcher, *arguments)
    assert two.returncode == 0, two.stderr[-4000:]
    assert last_losses(tmp_path / "two") == pytest.approx(last_losses(tmp_path / "one"), rel=0.02)
    assert same_weights(tmp_path / "one" / "adapter", tmp_path / "two" / "adapter", 0.05)
    again = launch(launcher, *arguments, "--max-steps", "5", "--resume", "true")
    assert again.returncode == 0, again.stderr[-4000:]
    assert json.loads(again.stdout)["steps"] == 5
