"""`shadowpeft pretrain`."""

import math
import shlex
import sys
from dataclasses import asdict

from shadowpeft.cli import FAILURE, INTERRUPTED
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.run import pretrain
from shadowpeft.train.run_folder import RUN


def run(settings: PretrainConfig, json: bool = False) -> int:
    """Pretrain a shadow on plain text, so that it starts from something and is of use when detached.

    Args:
        settings: the run.
        json: print the summary as JSON.
    """
    result = pretrain(settings, command=shlex.join(["shadowpeft", *sys.argv[1:]]))
    from shadowpeft.cli._models import print_result

    print_result(asdict(result), json)
    if result.stopped:
        again = f"shadowpeft pretrain --config {shlex.quote(f'{result.output}/{RUN}')} --resume"
        print(
            f"shadowpeft pretrain: stopped after step {result.steps} and saved; continue with: {again}",
            file=sys.stderr,
        )
        return INTERRUPTED
    if result.eval_loss is not None and not math.isfinite(result.eval_loss):
        print(
            "shadowpeft pretrain: the loss is not a finite number, the shadow is of no use; try a lower learning rate",
            file=sys.stderr,
        )
        return FAILURE
    return 0
