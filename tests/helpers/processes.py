"""Scripts and modules run in several processes, the run they do, and what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from shadowpeft.embedded import CLINC150, MODEL

# A module, because a script's folder would come first on the path, where `tokenizers.py` hides a library.
WORKER = ["-m", "helpers.distributed_worker"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
_PAGE = Path(__file__).parents[2] / "docs" / "guides" / "several-gpus.md"


def accelerate_launch(folder: Path) -> list[str]:
    """`accelerate launch` with the settings that the documentation has for FSDP2, written into a folder."""
    settings = folder / "fsdp2.yaml"
    settings.write_text(
        _PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0], encoding="utf-8"
    )
    return ["accelerate.commands.launch", "--config_file", str(settings), "--main_process_port", "0"]


def short_run(folder: Path) -> list[str]:
    """The words of a training run of four steps, whose rows are written into a folder.

    It has no dropout, which no two ways of sharing out the rows would draw alike.
    """
    rows = folder / "rows.jsonl"
    rows.write_text(
        "\n".join((CLINC150 / "train.jsonl").read_text(encoding="utf-8").splitlines()[:40]), encoding="utf-8"
    )
    words = f"train --model {MODEL} --data {rows} --shadow.dropout 0 --json"
    steps = "--max-steps 4 --logging-steps 1 --save-steps 2 --eval-fraction 0.2 --eval-steps 2"
    return [*words.split(), *steps.split()]


def folder_of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of pytest, the same in each of its workers."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def relative_errors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """How far each tensor is from the one wanted, as a share of it.

    Some gradients are zero but for rounding, which counts little: no bias of a key changes an attention.
    """
    return {
        name: ((found[name] - tensor).norm() / (1e-3 + tensor.norm())).item()
        for name, tensor in wanted.items()
    }


def launch(launcher: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a script or module in two processes."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = (sys.executable, "-m", *launcher, *command)
    return subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=environment, check=False, encoding="utf-8"
    )


def last_losses(folder: Path) -> dict[str, float]:
    losses: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        losses.update({name: value for name, value in json.loads(line).items() if name.endswith("loss")})
    return losses


def same_weights(folder: Path, other: Path, exact: float) -> bool:
    one, two = (load_file(run / "shadow.safetensors") for run in (folder, other))
    return one.keys() == two.keys() and all(
        (tensor - two[name]).norm() <= exact * tensor.norm() for name, tensor in one.items()
    )
