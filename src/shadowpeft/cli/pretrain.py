"""`shadowpeft pretrain`."""

from shadowpeft.cli import _runs
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.run import pretrain


def run(settings: PretrainConfig, json: bool = False) -> int:
    """Pretrain a shadow on plain text, so that it starts from something and is of use when detached.

    Args:
        settings: the run.
        json: print the summary as JSON.
    """
    result = pretrain(settings, command=_runs.command())
    return _runs.finish("pretrain", result, [result.eval_loss], as_json=json)
