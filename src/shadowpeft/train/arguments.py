"""The settings that training and pretraining share, in the words of transformers' Trainer.

torch and transformers are imported inside functions, so that a mistake is reported without waiting for them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shadowpeft.errors import ConfigError
from shadowpeft.train.run_folder import CHECKPOINTS, RunConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments


class StepConfig(RunConfig, Protocol):
    """What the settings of a run say of its steps."""

    @property
    def batch_size(self) -> int:
        """Rows per forward pass."""

    @property
    def gradient_accumulation(self) -> int:
        """Forward passes per optimizer step."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""

    @property
    def warmup(self) -> float:
        """Steps of warm-up, or a share of all steps if below 1."""

    @property
    def weight_decay(self) -> float:
        """Weight decay of AdamW."""

    @property
    def max_grad_norm(self) -> float:
        """Norm that gradients are scaled down to."""

    @property
    def bf16(self) -> bool:
        """True to compute in bfloat16."""

    @property
    def device(self) -> str:
        """`auto` or `cpu`."""

    @property
    def seed(self) -> int:
        """What decides every random choice."""

    @property
    def eval_steps(self) -> int:
        """Steps between evaluations."""

    @property
    def save_steps(self) -> int:
        """Steps between checkpoints."""

    @property
    def save_total_limit(self) -> int:
        """Checkpoints to keep."""

    @property
    def logging_steps(self) -> int:
        """Steps between entries of the log."""

    @property
    def report_to(self) -> str:
        """Where transformers reports to."""


def training_arguments(config: StepConfig, **own: Any) -> "TrainingArguments":
    """Translate the settings of a run into those of transformers' Trainer.

    Args:
        config: the settings.
        **own: what one kind of run sets besides, by transformers' names.

    Raises:
        ConfigError: transformers refuses them, or a library to report to cannot be used.
    """
    import torch
    from transformers import TrainingArguments

    on_cpu = config.device == "cpu"
    try:
        args = TrainingArguments(
            output_dir=str(Path(config.output) / CHECKPOINTS),
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            bf16=config.bf16,
            seed=config.seed,
            eval_steps=config.eval_steps,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=config.save_total_limit,
            logging_steps=config.logging_steps,
            report_to=config.report_to,
            # Where there is no accelerator, bf16 would ask for a GPU if this did not say so.
            use_cpu=on_cpu or not torch.accelerator.is_available(),
            # A loss that is not a finite number must be seen.
            logging_nan_inf_filter=False,
            # The Trainer's bar writes to standard output; a callback of the run takes its place.
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available() and not on_cpu,
            **own,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"the training settings do not fit this machine or each other: {error}") from error
    _check_reports(args, config.report_to)
    return args


def _check_reports(args: "TrainingArguments", report_to: str) -> None:
    """Refuse a library to report to that cannot be used.

    It is built here because only then does it say that it is not installed; the Trainer would build it after
    the model is loaded.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"report_to {report_to} cannot be used: {error}") from error


def recompute_activations(model: "nn.Module") -> None:
    """Let a model compute activations again in the backward pass (gradient checkpointing), to save memory.

    Args:
        model: a transformers model, or another library's wrapper of one; the wrapper may know only the former
            name of the switch.
    """
    from transformers import PreTrainedModel

    from shadowpeft.arch import versions

    stock = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    versions.recompute_activations(stock, use_reentrant=False)
