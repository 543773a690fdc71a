"""How `train` and `pretrain` end: what is printed of a run that is over or was stopped, and the exit code."""

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from shadowpeft.cli import FAILURE, INTERRUPTED
from shadowpeft.train.run_folder import RUN

if TYPE_CHECKING:
    from shadowpeft.pretrain.result import PretrainResult
    from shadowpeft.train import TrainResult


def command() -> str:
    """Return the command line as it can be typed again."""
    return shlex.join(["shadowpeft", *sys.argv[1:]])


def finish(
    verb: str, result: "TrainResult | PretrainResult", losses: Sequence[float | None], as_json: bool
) -> int:
    """Print the result of a run and return its exit code: 130 if it was stopped, 1 if a loss is not finite.

    Args:
        verb: `train` or `pretrain`.
        result: what the run came to.
        losses: the losses that must be finite numbers; `None` for one that was not measured.
        as_json: print JSON in place of aligned lines.
    """
    from shadowpeft.cli._models import print_result

    print_result(asdict(result), as_json)
    if result.stopped:
        again = f"shadowpeft {verb} --config {shlex.quote(f'{result.output}/{RUN}')} --resume"
        _say(verb, f"stopped after step {result.steps} and saved; continue with: {again}")
        return INTERRUPTED
    if all(loss is None or math.isfinite(loss) for loss in losses):
        return 0
    made = {"train": "adapter", "pretrain": "shadow"}[verb]
    _say(
        verb,
        f"the loss is not a finite number, so the {made} is of no use; try a lower learning rate",
    )
    return FAILURE


def _say(verb: str, message: str) -> None:
    print(f"shadowpeft {verb}: {message}", file=sys.stderr)
