"""The checkpoints of a run: which are complete, and which is the newest."""

import json
import warnings
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint was written to its end and has lost no file since.

    The Trainer writes its own state last, so a state that can be read marks a checkpoint as complete.
    """
    if not (folder / OPTIMIZER_NAME).is_file() or not (folder / SCHEDULER_NAME).is_file():
        return False
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint in a folder; warn of newer ones that are not complete."""
    steps = {path: path.name.rpartition("-")[2] for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    found = [path for path, step in steps.items() if step.isdecimal()]
    for path in sorted(found, key=lambda path: int(steps[path]), reverse=True):
        if is_complete(path):
            return path
        warnings.warn(
            f"{path} is incomplete (its saving was cut short, or a file was lost) and is skipped",
            stacklevel=2,
        )
    return None
