"""`shadowpeft train`."""

import os

from shadowpeft.cli import INTERRUPTED, _runs
from shadowpeft.train import train
from shadowpeft.train.config import TrainConfig


def run(settings: TrainConfig, json: bool = False) -> int:
    """Train a shadow beside a frozen base on rows of text.

    Args:
        settings: the run.
        json: print the summary as JSON.
    """
    result = train(settings, command=_runs.command())
    # Of several processes, only the first one prints.
    if os.environ.get("RANK", "0") != "0":
        return INTERRUPTED if result.stopped else 0
    return _runs.finish("train", result, [result.train_loss, result.eval_loss], as_json=json)
