"""`shadowpeft train`."""

import math
import os
import shlex
import sys
from dataclasses import asdict

from shadowpeft.cli import FAILURE, INTERRUPTED
from shadowpeft.train import TrainResult, train
from shadowpeft.train.config import TrainConfig
from shadowpeft.train.run_folder import RUN


def run(settings: TrainConfig, json: bool = False) -> int:
    """Train a shadow beside a frozen base on rows of text.

    Args:
        settings: the run.
        json: print the summary as JSON.
    """
    result = train(settings, command=shlex.join(["shadowpeft", *sys.argv[1:]]))
    from shadowpeft.cli._models import print_result

    if os.environ.get("RANK", "0") != "0":  # of several processes, the first one speaks
        return INTERRUPTED if result.stopped else 0
    print_result(asdict(result), json)
    if not result.stopped:
        return _check_losses(result)
    again = f"shadowpeft train --config {shlex.quote(f'{result.output}/{RUN}')} --resume"
    print(
        f"shadowpeft train: stopped after step {result.steps} and saved; continue with: {again}",
        file=sys.stderr,
    )
    return INTERRUPTED


def _check_losses(result: TrainResult) -> int:
    if all(loss is None or math.isfinite(loss) for loss in (result.train_loss, result.eval_loss)):
        return 0
    print(
        "shadowpeft train: the loss is not a finite number, so the adapter is of no use; try a lower learning rate",
        file=sys.stderr,
    )
    return FAILURE
