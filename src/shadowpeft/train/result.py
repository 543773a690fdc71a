"""What a training run came to, and what the model card of its adapter says of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.reporting import provenance
from shadowpeft.train import run_folder
from shadowpeft.train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from shadowpeft.train.draft import DraftResult
    from shadowpeft.train.examples import Examples
    from shadowpeft.train.stop_on_signal import StopOnSignal
    from shadowpeft.train.trainer import ShadowTrainer

ADAPTER = "adapter"


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    Attributes:
        output: the run's folder.
        adapter: the folder of the trained adapter; `None` if the run was stopped.
        checkpoint: the newest complete checkpoint.
        stopped: whether a signal stopped the run before its end; it can be resumed.
        steps: optimizer steps, those of earlier sessions included.
        epochs: passes over the data.
        train_loss: last logged loss (eq. 9).
        shadow_loss: last logged loss of the shadow's head.
        eval_loss: cross-entropy per token of the attached model on the evaluation rows, at the end.
        eval_shadow_loss: the same of the shadow's head.
        seconds: how long this session trained.
        drafts: how the shadow learnt to draft; `None` if it did not.
    """

    output: str
    adapter: str | None
    checkpoint: str | None
    stopped: bool
    steps: int
    epochs: float
    train_loss: float | None
    shadow_loss: float | None
    eval_loss: float | None
    eval_shadow_loss: float | None
    seconds: float
    drafts: "DraftResult | None" = None


def summarise(
    config: TrainConfig, trainer: "ShadowTrainer", stop: "StopOnSignal", seconds: float
) -> TrainResult:
    """Collect what a run came to; evaluate first, unless the last step did or the run was stopped.

    Args:
        config: the run's settings.
        trainer: the Trainer at its end.
        stop: what stopped it, if anything did.
        seconds: how long this session trained.
    """
    from shadowpeft.train.checkpoints import latest_checkpoint

    state, output = trainer.state, Path(config.output)
    stopped = stop.requested and state.global_step < state.max_steps
    # The last step logs its loss, its evaluation and the end of training: three entries.
    evaluated = any("eval_loss" in entry for entry in state.log_history[-3:])
    if trainer.eval_dataset is not None and not stopped and not evaluated:
        trainer.evaluate()
    last: dict[str, Any] = {}
    for entry in state.log_history:
        last.update(entry)
    newest = latest_checkpoint(output / run_folder.CHECKPOINTS)
    adapter = None if stopped else str(output / ADAPTER)
    return TrainResult(
        output=str(output),
        adapter=adapter,
        checkpoint=None if newest is None else str(newest),
        stopped=stopped,
        steps=state.global_step,
        epochs=round(state.epoch or 0.0, 4),
        train_loss=last.get("loss"),
        shadow_loss=last.get("shadow_loss"),
        eval_loss=last.get("eval_loss"),
        eval_shadow_loss=last.get("eval_shadow_loss"),
        seconds=round(seconds, 3),
    )


def facts(
    config: TrainConfig,
    result: TrainResult,
    examples: "Examples",
    start: Path | None,
    args: "TrainingArguments",
) -> dict[str, Any]:
    """Collect what the model card says of a run; a fact that does not apply is left out.

    Args:
        config: the run's settings.
        result: what it came to.
        examples: what it trained and evaluated on.
        start: the checkpoint it was resumed from.
        args: transformers' settings of the run.
    """
    import accelerate

    found = {
        **_of_rows(config, examples),
        **_of_steps(config, result, args.world_size),
        **_of_losses(config, result),
        **_of_drafts(config, result),
        "seconds": result.seconds,
    }
    if start is not None:
        found["resumed from"] = start.name
    return {**found, **provenance.where_it_ran(args.device), "accelerate": accelerate.__version__}


def _of_rows(config: TrainConfig, examples: "Examples") -> dict[str, Any]:
    found: dict[str, Any] = {
        "data": config.data,
        "rows": len(examples.train),
        "eval rows": len(examples.held_out),
    }
    if config.packing:
        found["packed to"] = f"{config.max_length} tokens a row"
    return found


def _of_steps(config: TrainConfig, result: TrainResult, processes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"steps": result.steps, "epochs": result.epochs}
    if config.max_steps is not None:
        found["max steps"] = config.max_steps
    found["batch size x accumulation"] = f"{config.batch_size} x {config.gradient_accumulation}"
    if processes != 1:
        found["processes"] = processes
    found["learning rate"] = f"{config.learning_rate:g}"
    if config.backbone_learning_rate is not None:
        found["backbone learning rate"] = f"{config.backbone_learning_rate:g}"
    found["scheduler"] = f"{config.scheduler}, warmup {config.warmup:g}"
    return found


def _of_losses(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    found: dict[str, Any] = {"shadow loss weight": config.shadow.resolved().shadow_loss_weight}
    if config.shadow.shadow_distil:
        found["of it learnt from the attached answer"] = config.shadow.shadow_distil
    found["bf16"] = config.bf16
    if config.load_in_4bit:
        found["base"] = "in 4 bits (NF4)"
    found["seed"] = config.seed
    losses = {
        "train loss": result.train_loss,
        "shadow loss": result.shadow_loss,
        "eval loss": result.eval_loss,
    }
    found |= {name: f"{value:.4g}" for name, value in losses.items() if value is not None}
    return found


def _of_drafts(config: TrainConfig, result: TrainResult) -> dict[str, Any]:
    if result.drafts is None:
        return {}
    draft, found = config.draft, result.drafts
    return {
        "draft head": f"rank {draft.rank}, {draft.steps} steps of {draft.loss} on {found.answers} of its own "
        f"answers ({found.tokens} tokens, temperature {draft.temperature:g})",
        "acceptance": f"{found.acceptance:.4f} ({found.acceptance_before:.4f} without the head)",
    }
