"""Pretrain a shadow on plain text: everything that can be checked is checked first, then transformers' Trainer runs.

torch and transformers are imported inside functions, so that a mistake is told before they are waited for.
"""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.errors import ConfigError
from shadowpeft.pretrain.config import BLOCKS, FRESH, PretrainConfig
from shadowpeft.pretrain.text import Text, read_text, warn_of_skipped
from shadowpeft.reporting import provenance
from shadowpeft.train import arguments, checks, run_folder

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, TrainingArguments

    from shadowpeft.pretrain.objective import Lesson
    from shadowpeft.pretrain.trainer import PretrainTrainer
    from shadowpeft.shadow import Shadow
    from shadowpeft.train.callbacks import StopOnSignal

SHADOW = "shadow"
# What may differ between a run and its continuation; the length is not among it, since the learning rate depends on it.
_FREE_ON_RESUME = run_folder.FREE_ON_RESUME
_ENDLESS = 10**9  # steps, where the clock ends the run


@dataclass(frozen=True)
class PretrainResult:
    """What a run came to.

    Attributes:
        output: the run's folder.
        shadow: the shadow folder; `None` if the run was stopped.
        checkpoint: the newest complete checkpoint.
        stopped: whether a signal stopped the run before its end; it can be resumed.
        steps: optimizer steps, those of earlier sessions included.
        tokens: tokens trained on, those of earlier sessions included.
        laps: how many times the text was read to its end.
        empty_rows: rows of the source that hold no text, as far as it was read.
        undecodable_rows: rows of it that could not be decoded.
        eval_empty_rows: rows of the held-out text that hold no text, as far as it was read.
        eval_undecodable_rows: rows of it that could not be decoded.
        parameters: values of the shadow that train.
        start_loss: next-token loss of the detached shadow on the held-out text before the first step.
        eval_loss: the same at the end.
        eval_perplexity: its exponential.
        base_loss: the base's own loss there.
        model_loss: of a run that starts from a smaller model, that model's loss there through its own head.
        tokens_per_second: of training in this session, evaluation and saving left out.
        plain_tokens_per_second: of plain forward and backward passes of the same model alone, logits held; `None` where they do not fit.
        share_of_plain: the one by the other.
        seconds: how long the run trained, earlier sessions included.
    """

    output: str
    shadow: str | None
    checkpoint: str | None
    stopped: bool
    steps: int
    tokens: int
    laps: int
    empty_rows: int
    undecodable_rows: int
    eval_empty_rows: int
    eval_undecodable_rows: int
    parameters: int
    start_loss: float | None
    eval_loss: float | None
    eval_perplexity: float | None
    base_loss: float | None
    model_loss: float | None
    tokens_per_second: float | None
    plain_tokens_per_second: float | None
    share_of_plain: float | None
    seconds: float


def pretrain(
    config: PretrainConfig, command: str = "shadowpeft.pretrain.run.pretrain(...)"
) -> PretrainResult:
    """Pretrain a shadow and write its folder.

    Everything that can be checked without the model's weights is checked before they are loaded. On Ctrl-C or SIGTERM the step is
    finished and saved, and the result says `stopped`.

    Args:
        config: the settings.
        command: how the run was started, for the model card.

    Raises:
        UserError: settings, text, model or output folder cannot be used; its type and message say which.
    """
    checks.require_accelerate("pretraining")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("pretraining runs in one process; start it without torchrun or accelerate launch")
    start = run_folder.prepare(config, SHADOW, _FREE_ON_RESUME)
    text = read_text(config)
    args = _training_arguments(config, start)

    from transformers import trainer_utils

    from shadowpeft.train.attention import sound_attention

    # The Trainer would choose deterministic operations, too, but only after the projection was fitted.
    (trainer_utils.enable_full_determinism if config.deterministic else trainer_utils.set_seed)(config.seed)
    lesson, model_loss = _build_lesson(config, args, text, start)
    trainer, stop = _build_trainer(config, lesson, args, text)
    run_folder.begin(config, start)
    with stop.listening(), sound_attention():
        plain = trainer.plain_rate()
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        result = _summarise(config, trainer, text, stop, plain, model_loss)
    if result.shadow is not None:
        trainer.save_shadow(result.shadow, _facts(config, result, command, args))
    return result


# Text


# Model


def _build_lesson(
    config: PretrainConfig, args: "TrainingArguments", text: Text, start: Path | None
) -> "tuple[Lesson, float | None]":
    import torch

    from shadowpeft import arch
    from shadowpeft.pretrain.objective import Lesson, Weights, train_parts
    from shadowpeft.storage import stock_models

    dtype = torch.bfloat16 if config.bf16 else torch.float32
    base = stock_models.load_model(config.model, dtype, config.attn_implementation).to(args.device)  # type: ignore[arg-type]
    if config.match_block is not None and config.match_block >= len(arch.blocks_of(base)):
        raise ConfigError(
            f"match_block must be one of the base's {len(arch.blocks_of(base))} blocks, from 0, got {config.match_block}"
        )
    shadow, model_loss = _start(config, base, text, fits=start is None)
    shadow.float()
    train_parts(shadow, config.train_parts)
    weights = Weights(**{field.name: vars(config)[field.name] for field in dataclasses.fields(Weights)})
    return Lesson(base, shadow, weights), model_loss


def _start(
    config: PretrainConfig, base: "PreTrainedModel", text: Text, fits: bool
) -> "tuple[Shadow, float | None]":
    """Make the shadow that the run begins with, and measure the smaller model it is made of; a run that goes on fits no projection."""
    import torch

    from shadowpeft import arch
    from shadowpeft.config import ShadowConfig
    from shadowpeft.model import sources
    from shadowpeft.pretrain import start
    from shadowpeft.pretrain.objective import own_loss
    from shadowpeft.storage import stock_models

    depth, layers = len(arch.blocks_of(base)), config.layers or 2
    if config.start == FRESH:
        sizes = {
            f"shadow_{name}": vars(config)[name]
            for name in ("intermediate_size", "attention_heads", "key_value_heads", "head_dim")
        }
        return start.fresh(base, ShadowConfig(shadow_layers=layers, **sizes), torch.float32), None
    if config.start == BLOCKS:
        if layers > depth:
            raise ConfigError(f"layers must be at most the base's {depth} blocks, got {layers}")
        spread = [round(place * (depth - 1) / max(layers - 1, 1)) for place in range(layers)]
        return start.from_base_blocks(base, config.blocks or spread, torch.float32), None
    if sources.holds(config.start):
        return sources.read(base, config.start).to(base.device), None
    model = stock_models.load_model(config.start, torch.float32, config.attn_implementation).to(base.device)  # type: ignore[arg-type]
    shadow = start.from_model(base, model, torch.float32)
    if fits and shadow.projection is not None and config.warm_start != "none":
        _warm_start(config, base, model, shadow, text)
    return shadow, own_loss(model, [torch.from_numpy(row).to(base.device) for row in text.held_out])


def _warm_start(
    config: PretrainConfig, base: "PreTrainedModel", model: "PreTrainedModel", shadow: "Shadow", text: Text
) -> None:
    """Fit the projection before any training, and say how well it fits."""
    import itertools

    import numpy as np
    import torch

    from shadowpeft.pretrain import warm

    assert config.warm_start != "none"
    rows = (
        [row["input_ids"] for row in itertools.islice(text.rows, config.warm_start_rows)]
        if config.warm_start != "pinv"
        else []
    )
    # Held-out rows are of one length, or there is a single one.
    read, held_out = (
        [torch.from_numpy(np.stack(part)).to(base.device) for part in _parts(of, config.batch_size)]
        for of in (rows, text.held_out)
    )
    fit = warm.start(shadow, base, model, config.warm_start, read, held_out)
    aimed = (
        ""
        if fit.in_states is None
        else f"{fit.in_states:.4g} of the base's states at strength {fit.strength:g}, and "
    )
    print(
        f"warm start {config.warm_start}: on held-out text the projection misses {aimed}{fit.in_logits:.4g} of the smaller model's logits "
        f"({fit.in_weights:.4g} of its head's weights); 0 is exact, 1 as bad as none",
        file=sys.stderr,
    )


def _parts(rows: "list[np.ndarray]", size: int) -> "list[list[np.ndarray]]":
    return [rows[first : first + size] for first in range(0, len(rows), size)]


# Training


def _training_arguments(config: PretrainConfig, start: Path | None) -> "TrainingArguments":
    return arguments.training_arguments(
        config,
        max_steps=config.max_steps or _ENDLESS,
        adam_beta2=0.95,
        full_determinism=config.deterministic,
        eval_strategy="steps",
        eval_on_start=start is None,
        accelerator_config={"dispatch_batches": False},
        ignore_data_skip=True,  # the rows know their place themselves
    )


def _build_trainer(
    config: PretrainConfig, lesson: "Lesson", args: "TrainingArguments", text: Text
) -> "tuple[PretrainTrainer, StopOnSignal]":
    from shadowpeft.pretrain.pace import Pace
    from shadowpeft.pretrain.trainer import PretrainProgress, PretrainTrainer
    from shadowpeft.train.callbacks import MetricsFile, StopOnSignal

    if config.gradient_checkpointing:
        arguments.recompute_activations(lesson.shadow.backbone)
    stop, pace = StopOnSignal(), Pace(config.max_steps, config.max_seconds)
    callbacks = [stop, MetricsFile(Path(config.output) / run_folder.METRICS), PretrainProgress(pace)]
    return PretrainTrainer(lesson, args, text.rows, text.held_out, pace, config.scheduler, callbacks), stop


# Result


def _summarise(
    config: PretrainConfig,
    trainer: "PretrainTrainer",
    text: Text,
    stop: "StopOnSignal",
    plain: float | None,
    model_loss: float | None,
) -> PretrainResult:
    from shadowpeft.train.checkpoints import latest_checkpoint

    state, output = trainer.state, Path(config.output)
    over = state.global_step >= state.max_steps or trainer.pace.is_over()
    stopped = stop.requested and not over
    seconds, rate = trainer.pace.seconds(), trainer.session_rate()
    if not stopped and not any(
        "eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history
    ):
        trainer.evaluate()
    evaluated = [entry for entry in state.log_history if "eval_loss" in entry]
    last = evaluated[-1] if evaluated and not stopped else {}
    warn_of_skipped(text.rows, "text")
    warn_of_skipped(text.evaluated, "held-out text")
    newest = latest_checkpoint(output / run_folder.CHECKPOINTS)
    return PretrainResult(
        output=str(output),
        shadow=None if stopped else str(output / SHADOW),
        checkpoint=None if newest is None else str(newest),
        stopped=stopped,
        steps=state.global_step,
        tokens=trainer.tokens,
        laps=trainer.place().lap,
        empty_rows=text.rows.skipped["empty"],
        undecodable_rows=text.rows.skipped["undecodable"],
        eval_empty_rows=text.evaluated.skipped["empty"],
        eval_undecodable_rows=text.evaluated.skipped["undecodable"],
        parameters=sum(
            parameter.numel() for parameter in trainer.lesson.shadow.parameters() if parameter.requires_grad
        ),
        start_loss=evaluated[0]["eval_loss"] if evaluated and evaluated[0]["step"] == 0 else None,
        eval_loss=last.get("eval_loss"),
        eval_perplexity=last.get("eval_perplexity"),
        base_loss=None if stopped else trainer.held_out_loss(trainer.lesson.base_losses),
        model_loss=None if model_loss is None else round(model_loss, 6),
        tokens_per_second=rate,
        plain_tokens_per_second=plain,
        share_of_plain=None if rate is None or plain is None else round(rate / plain, 4),
        seconds=round(seconds, 3),
    )


def _facts(
    config: PretrainConfig, result: PretrainResult, command: str, args: "TrainingArguments"
) -> dict[str, Any]:
    """Collect what the shadow folder tells of the run."""
    losses = {name: vars(config)[name] for name in ("next_token", "distil", "match") if vars(config)[name]}
    told = {
        name: value
        for name, value in dataclasses.asdict(result).items()
        if name not in ("output", "shadow", "checkpoint", "stopped")
    }
    return {
        "command": command,
        "data": config.data,
        "start": config.start,
        "trained": config.train_parts,
        "losses": ", ".join(f"{name} {weight:g}" for name, weight in losses.items()),
        "rows": f"{config.batch_size} x {config.gradient_accumulation} of {config.max_length} tokens a step",
        "learning rate": f"{config.learning_rate:g}, {config.scheduler}, warmup {config.warmup:g}",
        "bf16": config.bf16,
        "seed": config.seed,
        **{name.replace("_", " "): value for name, value in told.items() if value is not None},
        **provenance.where_it_ran(args.device),
    }
