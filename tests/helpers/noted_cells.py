"""Cells of a study that only note that they ran.

This module holds nothing else and imports little, since the processes of the workers import it.
"""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shadowpeft.compare import records
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study

if TYPE_CHECKING:
    from shadowpeft.compare.run import StudyResult

TEXT = "A held-out text that is long enough to be measured, and of no task at all. " * 4


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def ok(cell: Cell, value: float | None, **changes) -> dict:
    """Return the record of a cell that was measured."""
    return {**records.failed(cell, "ok", "")[0], "metric": "accuracy", "value": value, **changes}


def second_run(cell: Cell) -> Cell:
    """Return a trial's run from the second seed of the search."""
    return replace(cell, seed=1001)


def measured(cell: Cell, study: Study) -> list[dict]:
    """Note that a cell ran, and return its records: a method with a higher learning rate is better."""
    with open(Path(study.data_dir) / "calls.txt", "a", encoding="utf-8") as calls:
        calls.write(cell.key + "\n")
    by_loss = cell.stage == "search" and cell.task == "gsm8k"
    metric = "loss" if by_loss else "accuracy"
    record = ok(cell, 1000 * cell.learning_rate, error=None, metric=metric, correct="01")
    modes = ["attached", "detached"] if cell.method == "shadow" else ["attached"]
    return [{**record, "mode": mode} for mode in modes]


def killed_once(cell: Cell, study: Study) -> list[dict]:
    found = measured(cell, study)
    if called(study).count(cell.key) == 1 and len(called(study)) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return found


def deadly(cell: Cell, study: Study) -> list[dict]:
    if cell.method != "base" and cell.setting == study.candidates(cell.method, cell.task)[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return measured(cell, study)


def failing(cell: Cell, study: Study) -> list[dict]:
    found = measured(cell, study)
    if cell.method == "lora" and cell.seed == 1:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    if cell.method == "shadow" and cell.task == "gsm8k":
        raise ZeroDivisionError("a fault")
    return found


def interrupted(cell: Cell, study: Study) -> list[dict]:
    found = measured(cell, study)
    if len(called(study)) == 3:
        raise KeyboardInterrupt
    return found


def crowded(cell: Cell, study: Study) -> list[dict]:
    """Find memory for the shadow only outside the pool, and for LoRA nowhere."""
    found = measured(cell, study)
    if cell.method == "lora" or (cell.method == "shadow" and multiprocessing.parent_process() is not None):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return found


def slow(cell: Cell, study: Study) -> list[dict]:
    time.sleep(0.2)
    return [{**record, "config": {"pid": os.getpid()}} for record in measured(cell, study)]


def called(study: Study) -> list[str]:
    """Return the keys of the cells that ran, in their order."""
    path = Path(study.data_dir) / "calls.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def no_report(study: Study, found: list[dict], folder: Path, expected: list[Cell]) -> dict:
    (folder / "table.md").write_text(f"{len(found)} records of {len(expected)} cells\n", encoding="utf-8")
    return {"averages": [], "missing": []}


def go(study: Study, run_cell=measured, **options) -> "StudyResult":
    from shadowpeft.compare import run

    return run.compare(study, run_cell=run_cell, report=no_report, **options)


def written(study: Study) -> list[dict]:
    return [json.loads(line) for line in record_file(study).read_text(encoding="utf-8").splitlines()]


def record_file(study: Study) -> Path:
    return Path(study.output) / f"compare-{study.name}.jsonl"
