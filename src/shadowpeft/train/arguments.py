"""What runs of training and of pretraining set up alike: transformers' own settings, and the facts of where a run ran.

torch and transformers are imported inside functions, so that a mistake is told before they are waited for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shadowpeft.errors import ConfigError
from shadowpeft.train.run_folder import CHECKPOINTS, RunConfig

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

# The settings of all runs, by the names that transformers has for them.
_SETTINGS = {
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation",
    "warmup_steps": "warmup",
    **{
        name: name for name in ("learning_rate", "weight_decay", "max_grad_norm", "bf16", "seed", "report_to")
    },
    **{name: name for name in ("eval_steps", "save_steps", "save_total_limit", "logging_steps")},
}


def training_arguments(config: RunConfig, **own: Any) -> "TrainingArguments":
    """Translate the settings of a run into transformers' own.

    Args:
        config: the settings, a dataclass.
        **own: what one kind of run sets besides, by transformers' names.

    Raises:
        ConfigError: transformers refuses them, or a library to report to cannot be used.
    """
    import torch
    from transformers import TrainingArguments
    from transformers.integrations import get_reporting_integration_callbacks

    settings, on_cpu = vars(config), vars(config)["device"] == "cpu"
    try:
        args = TrainingArguments(
            output_dir=str(Path(config.output) / CHECKPOINTS),
            **{name: settings[ours] for name, ours in _SETTINGS.items()},
            use_cpu=on_cpu or not torch.accelerator.is_available(),  # else bf16 would ask for a GPU
            save_strategy="steps",
            logging_nan_inf_filter=False,  # a loss that is not a number must be seen
            disable_tqdm=True,  # its bar writes to stdout; a callback of the run takes its place
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available() and not on_cpu,
            **own,
        )
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"the training settings do not fit this machine or each other: {error}") from error
    try:
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()  # only here would it say that its library is not installed; the Trainer would ask after the model is loaded
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"report_to {settings['report_to']} cannot be used: {error}") from error
    return args


def recompute_activations(model: "nn.Module") -> None:
    """Let a model compute activations again in the backward pass instead of keeping them (gradient checkpointing).

    Args:
        model: a transformers model, or another library's wrapper of one, which may know the switch by its former name alone.
    """
    from transformers import PreTrainedModel

    stock = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    # transformers renamed the switch between 5.17 and 5.23.
    renamed = "activation_checkpointing_enable" in dir(PreTrainedModel)
    (stock.activation_checkpointing_enable if renamed else stock.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
