"""A pretraining run: it checks everything that can be checked, then transformers' Trainer trains the shadow.

torch and transformers are imported inside functions, so that a mistake is reported before they are loaded.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shadowpeft.errors import ConfigError
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.result import SHADOW, PretrainResult, facts, summarise
from shadowpeft.pretrain.text import Text, read_text
from shadowpeft.train import arguments, checks, run_folder

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from shadowpeft.pretrain.objective import Objective
    from shadowpeft.pretrain.trainer import PretrainTrainer
    from shadowpeft.train.stop_on_signal import StopOnSignal

# What may differ between a run and its continuation. The length may not: the learning rate depends on it.
_FREE_ON_RESUME = run_folder.FREE_ON_RESUME
# Steps of a run that the clock ends.
_ENDLESS = 10**9


def pretrain(
    config: PretrainConfig, command: str = "shadowpeft.pretrain.run.pretrain(...)"
) -> PretrainResult:
    """Pretrain a shadow and write its folder.

    Everything that can be checked without the model's weights is checked before they are loaded. On Ctrl-C or
    SIGTERM the run finishes its step, saves, and returns a result that is `stopped`.

    Args:
        config: the settings.
        command: how the run was started, for the model card.

    Raises:
        UserError: settings, text, model or output folder cannot be used. Its type and message say which.
    """
    _refuse_surroundings()
    checkpoint = run_folder.prepare(config, SHADOW, _FREE_ON_RESUME)
    text = read_text(config)
    args = _training_arguments(config, checkpoint)

    from shadowpeft.train.attention import sound_attention

    _seed(config)
    objective, model_loss = _build_objective(config, args, text, resumes=checkpoint is not None)
    trainer, stop = _build_trainer(config, objective, args, text=text)
    run_folder.begin(config, checkpoint)
    with stop.listening(), sound_attention():
        plain_rate = trainer.plain_rate()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        result = summarise(
            config, trainer, text, signalled=stop.requested, plain_rate=plain_rate, model_loss=model_loss
        )
    if result.shadow is not None:
        trainer.save_shadow(result.shadow, facts(config, result, command, args.device))
    return result


def _refuse_surroundings() -> None:
    checks.require_accelerate("pretraining")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("pretraining runs in one process; start it without torchrun or accelerate launch")


def _training_arguments(config: PretrainConfig, checkpoint: Path | None) -> "TrainingArguments":
    return arguments.training_arguments(
        config,
        max_steps=config.max_steps or _ENDLESS,
        adam_beta2=0.95,
        full_determinism=config.deterministic,
        eval_strategy="steps",
        eval_on_start=checkpoint is None,
        accelerator_config={"dispatch_batches": False},
        ignore_data_skip=True,  # the rows know their place themselves
    )


def _seed(config: PretrainConfig) -> None:
    from transformers import trainer_utils

    # The Trainer would choose deterministic operations too, but only after the projection was fitted.
    seed = trainer_utils.enable_full_determinism if config.deterministic else trainer_utils.set_seed
    seed(config.seed)


def _build_objective(
    config: PretrainConfig, args: "TrainingArguments", text: Text, *, resumes: bool
) -> "tuple[Objective, float | None]":
    """Load the base, build the shadow beside it, and join both with the losses."""
    import torch

    from shadowpeft import arch
    from shadowpeft.pretrain.choose_start import initial_shadow
    from shadowpeft.pretrain.objective import Objective, Weights, train_parts
    from shadowpeft.storage import stock_models

    dtype = torch.bfloat16 if config.bf16 else torch.float32
    base = stock_models.load_model(config.model, dtype, config.attn_implementation)
    base = base.to(args.device)  # type: ignore[arg-type]
    depth = len(arch.blocks_of(base))
    if config.match_block is not None and config.match_block >= depth:
        raise ConfigError(
            f"match_block must be one of the base's {depth} blocks, from 0, got {config.match_block}"
        )
    shadow, model_loss = initial_shadow(config, base, text, resumes=resumes)
    shadow.float()
    train_parts(shadow, config.train_parts)
    return Objective(base, shadow, Weights.of(config)), model_loss


def _build_trainer(
    config: PretrainConfig, objective: "Objective", args: "TrainingArguments", *, text: Text
) -> "tuple[PretrainTrainer, StopOnSignal]":
    from shadowpeft.pretrain.pace import Pace
    from shadowpeft.pretrain.trainer import PretrainProgress, PretrainTrainer
    from shadowpeft.train.callbacks import MetricsFile
    from shadowpeft.train.stop_on_signal import StopOnSignal

    if config.gradient_checkpointing:
        arguments.recompute_activations(objective.shadow.backbone)
    stop, pace = StopOnSignal(), Pace(config.max_steps, config.max_seconds)
    trainer = PretrainTrainer(
        objective,
        args,
        text.rows,
        held_out=text.held_out,
        pace=pace,
        schedule=config.scheduler,
        callbacks=[stop, MetricsFile(Path(config.output) / run_folder.METRICS), PretrainProgress(pace)],
    )
    return trainer, stop
