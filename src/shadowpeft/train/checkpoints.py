"""Which checkpoints of a run are complete, and which is the newest."""

import json
import warnings
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def is_complete(folder: Path) -> bool:
    """Tell whether a checkpoint was written to its end (the Trainer writes its state last) and has lost no file since."""
    if not (folder / OPTIMIZER_NAME).is_file() or not (folder / SCHEDULER_NAME).is_file():
        return False
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    return True


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint; warn of a newer one whose saving was cut short."""
    found = [
        path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdecimal()
    ]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if is_complete(path):
            return path
        warnings.warn(
            f"{path} is incomplete (its saving was cut short, or a file was lost) and is skipped",
            stacklevel=2,
        )
    return None
