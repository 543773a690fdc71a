"""Scripts and modules run in two processes, and what their runs wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

WORKER = str(Path(__file__).parent / "distributed_worker.py")


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"


def launch(launcher: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a script or module in two processes."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = (sys.executable, "-m", *launcher, *command)
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment, check=False)


def last_losses(folder: Path) -> dict[str, float]:
    losses: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        losses.update({name: value for name, value in json.loads(line).items() if name.endswith("loss")})
    return losses


def same_weights(folder: Path, other: Path, exact: float) -> bool:
    one, two = (load_file(run / "shadow.safetensors") for run in (folder, other))
    return one.keys() == two.keys() and all(
        (tensor - two[name]).norm() <= exact * tensor.norm() for name, tensor in one.items()
    )
