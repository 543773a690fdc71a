"""What a pretraining run came to: its result, and the facts that the shadow's folder keeps of it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.text import Text, warn_of_skipped
from shadowpeft.reporting import provenance
from shadowpeft.train import run_folder

if TYPE_CHECKING:
    import torch

    from shadowpeft.pretrain.trainer import PretrainTrainer

SHADOW = "shadow"
# Where the run wrote is no fact of the shadow, which may be moved.
_NOT_FACTS = ("output", "shadow", "checkpoint", "stopped")


@dataclass(frozen=True)
class PretrainResult:
    """The result of a pretraining run."""

    output: str
    """Folder of the run."""
    shadow: str | None
    """Folder of the shadow. `None` if the run was stopped."""
    checkpoint: str | None
    """Newest complete checkpoint."""
    stopped: bool
    """True if a signal stopped the run before its end. It can be resumed."""
    steps: int
    """Optimizer steps, with those of earlier sessions."""
    tokens: int
    """Tokens trained on, with those of earlier sessions."""
    laps: int
    """How many times the text was read to its end."""
    empty_rows: int
    """Rows of the source that hold no text, in the part that was read."""
    undecodable_rows: int
    """Rows of the source that could not be decoded."""
    eval_empty_rows: int
    """Rows of the held-out text that hold no text, in the part that was read."""
    eval_undecodable_rows: int
    """Rows of the held-out text that could not be decoded."""
    parameters: int
    """Trained values of the shadow."""
    start_loss: float | None
    """Next-token loss of the detached shadow on the held-out text before the first step, in nats a token."""
    eval_loss: float | None
    """The same loss at the end."""
    eval_perplexity: float | None
    """The exponential of `eval_loss`."""
    base_loss: float | None
    """Next-token loss of the base on the held-out text."""
    model_loss: float | None
    """If the run started from a smaller model, that model's loss on the held-out text through its own head."""
    tokens_per_second: float | None
    """Speed of training in this session, without evaluation and saving."""
    plain_tokens_per_second: float | None
    """Speed of plain forward and backward passes of the same model alone, with its logits in memory. `None` if they
    do not fit."""
    share_of_plain: float | None
    """`tokens_per_second` divided by `plain_tokens_per_second`."""
    seconds: float
    """Seconds of training, with those of earlier sessions."""


def summarise(
    config: PretrainConfig,
    trainer: "PretrainTrainer",
    text: Text,
    *,
    signalled: bool,
    plain_rate: float | None,
    model_loss: float | None,
) -> PretrainResult:
    """Collect the result of a run that has ended, and evaluate once more if its last step was not evaluated.

    Args:
        config: the settings.
        trainer: has trained.
        text: what was read; a warning counts the rows that could not be used.
        signalled: True if a signal asked the run to stop.
        plain_rate: tokens a second of plain passes.
        model_loss: loss of the smaller model that the shadow was made from.
    """
    state, output = trainer.state, Path(config.output)
    ended = state.global_step >= state.max_steps or trainer.pace.is_over()
    # A signal that came with the last step stopped nothing.
    stopped = signalled and not ended
    seconds, rate = trainer.pace.seconds(), trainer.session_rate()
    if not stopped and not _is_evaluated(trainer):
        trainer.evaluate()
    evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
    warn_of_skipped(text.rows, "text")
    warn_of_skipped(text.evaluated, "held-out text")
    return PretrainResult(
        output=str(output),
        shadow=None if stopped else str(output / SHADOW),
        checkpoint=_newest_checkpoint(output),
        stopped=stopped,
        steps=state.global_step,
        tokens=trainer.tokens,
        laps=trainer.place().lap,
        empty_rows=text.rows.skipped["empty"],
        undecodable_rows=text.rows.skipped["undecodable"],
        eval_empty_rows=text.evaluated.skipped["empty"],
        eval_undecodable_rows=text.evaluated.skipped["undecodable"],
        parameters=trainer.shadow_objective.trained_values(),
        start_loss=_first_loss(evaluations),
        **_last_losses([] if stopped else evaluations),
        base_loss=None if stopped else trainer.held_out_loss(trainer.shadow_objective.base_losses),
        model_loss=_rounded(model_loss, 6),
        tokens_per_second=rate,
        plain_tokens_per_second=plain_rate,
        share_of_plain=_ratio(rate, plain_rate),
        seconds=round(seconds, 3),
    )


def facts(
    config: PretrainConfig, result: PretrainResult, command: str, device: "torch.device"
) -> dict[str, Any]:
    """Return what the shadow's folder keeps of the run, by the words of its card."""
    weights = {"next_token": config.next_token, "distil": config.distil, "match": config.match}
    measured = {
        name.replace("_", " "): value
        for name, value in dataclasses.asdict(result).items()
        if name not in _NOT_FACTS and value is not None
    }
    return {
        "command": command,
        "data": config.data,
        "start": config.start,
        "trained": config.train_parts,
        "losses": ", ".join(f"{name} {weight:g}" for name, weight in weights.items() if weight),
        "rows": f"{config.batch_size} x {config.gradient_accumulation} of {config.max_length} tokens a step",
        "learning rate": f"{config.learning_rate:g}, {config.scheduler}, warmup {config.warmup:g}",
        "bf16": config.bf16,
        "seed": config.seed,
        **measured,
        **provenance.where_it_ran(device),
    }


def _is_evaluated(trainer: "PretrainTrainer") -> bool:
    step = trainer.state.global_step
    return any("eval_loss" in entry and entry["step"] == step for entry in trainer.state.log_history)


def _newest_checkpoint(output: Path) -> str | None:
    from shadowpeft.train.checkpoints import latest_checkpoint

    newest = latest_checkpoint(output / run_folder.CHECKPOINTS)
    return None if newest is None else str(newest)


def _first_loss(evaluations: list[dict[str, float]]) -> float | None:
    if evaluations and evaluations[0]["step"] == 0:
        return evaluations[0]["eval_loss"]
    return None


def _last_losses(evaluations: list[dict[str, float]]) -> dict[str, float | None]:
    last = evaluations[-1] if evaluations else {}
    return {"eval_loss": last.get("eval_loss"), "eval_perplexity": last.get("eval_perplexity")}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _ratio(rate: float | None, plain_rate: float | None) -> float | None:
    if rate is None or plain_rate is None:
        return None
    return round(rate / plain_rate, 4)
