"""Cells of a study that only note that they were run. A module of its own, since the workers' processes have to find it."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import torch

from shadowpeft.compare import ledger, run
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def measured(cell: Cell, settings: Study) -> list[dict]:
    with open(Path(settings.data_dir) / "calls.txt", "a") as calls:
        calls.write(cell.key + "\n")
    by_loss = cell.stage == "search" and cell.task == "gsm8k"
    (row,) = ledger.failed(cell, "ok", "")
    row |= {
        "error": None,
        "metric": "loss" if by_loss else "accuracy",
        "value": 1000 * cell.learning_rate,
        "correct": "01",
    }
    modes = ["attached", "detached"] if cell.method == "shadow" else ["attached"]
    return [{**row, "mode": mode} for mode in modes]


def killed_once(cell: Cell, settings: Study) -> list[dict]:
    rows = measured(cell, settings)
    if called(settings).count(cell.key) == 1 and len(called(settings)) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


def deadly(cell: Cell, settings: Study) -> list[dict]:
    if cell.method != "base" and cell.setting == settings.candidates(cell.method)[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return measured(cell, settings)


def failing(cell: Cell, settings: Study) -> list[dict]:
    rows = measured(cell, settings)
    if cell.method == "lora" and cell.seed == 1:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    if cell.method == "shadow" and cell.task == "gsm8k":
        raise ZeroDivisionError("a fault")
    return rows


def interrupted(cell: Cell, settings: Study) -> list[dict]:
    rows = measured(cell, settings)
    if len(called(settings)) == 3:
        raise KeyboardInterrupt
    return rows


def crowded(cell: Cell, settings: Study) -> list[dict]:
    """Find room for the shadow only outside the pool, and for LoRA nowhere."""
    rows = measured(cell, settings)
    if cell.method == "lora" or (cell.method == "shadow" and multiprocessing.parent_process() is not None):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return rows


def slow(cell: Cell, settings: Study) -> list[dict]:
    time.sleep(0.2)
    return [{**row, "config": {"pid": os.getpid()}} for row in measured(cell, settings)]


def called(settings: Study) -> list[str]:
    path = Path(settings.data_dir) / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def no_report(settings: Study, rows: list[dict], folder: Path, expected: list[Cell]) -> dict:
    (folder / "table.md").write_text(f"{len(rows)} rows of {len(expected)} cells\n")
    return {"averages": [], "missing": []}


def go(settings: Study, run_cell=measured, **options) -> run.StudyResult:
    return run.compare(settings, run_cell=run_cell, report=no_report, **options)


def written(settings: Study) -> list[dict]:
    return [json.loads(line) for line in record(settings).read_text().splitlines()]


def record(settings: Study) -> Path:
    return Path(settings.output) / f"compare-{settings.name}.jsonl"


TEXT = "A held-out text that is long enough to be measured, and of no task at all. " * 4
