"""What is checked of a run before its data are read: libraries, 4-bit layers, FSDP and the implementation."""

import importlib.util
import os

from shadowpeft.errors import ConfigError, UserError
from shadowpeft.train.config import TrainConfig


def check(config: TrainConfig) -> None:
    """Refuse settings that this machine, or the way the run was started, does not allow.

    torch is imported only where a setting needs it, so that other mistakes are found at once.

    Raises:
        UserError: a library is missing, or a setting cannot be used here.
    """
    require_accelerate("training")
    if config.load_in_4bit:
        check_4bit(config)
    is_sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if is_sharded:
        check_fsdp(config)
    if config.impl != "auto":
        check_impl(config)
    if config.draft.steps and (is_sharded or os.environ.get("WORLD_SIZE", "1") != "1"):
        raise ConfigError(
            "a shadow learns to draft in one process; leave draft.steps out, and when the run is over go on "
            "in one process with resume and draft.steps"
        )


def require_accelerate(work: str) -> None:
    """Refuse to begin without accelerate, which transformers' Trainer needs.

    Args:
        work: what needs it, as the message begins: `training`.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise UserError(f"{work} needs the accelerate library; pip install 'shadowpeft[train]'")


def check_4bit(config: TrainConfig) -> None:
    """Refuse 4 bits on a CPU, or without bitsandbytes.

    On a CPU, the layers of bitsandbytes pass no gradient once they were evaluated.
    """
    import torch

    if config.device == "cpu" or not torch.cuda.is_available():
        raise ConfigError("load_in_4bit needs a GPU, and the run is on a CPU; leave load_in_4bit out")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "load_in_4bit needs the bitsandbytes library; "
            "pip install 'shadowpeft[4bit]', or leave load_in_4bit out"
        )


def check_fsdp(config: TrainConfig) -> None:
    """Refuse settings of `accelerate launch` that do not work here, before a base is loaded under them."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    from shadowpeft.train import fsdp

    if config.load_in_4bit:
        raise ConfigError(
            "a 4-bit base is not sharded: "
            "leave out load_in_4bit, or start the run with torchrun, without FSDP"
        )
    fsdp.refuse(FullyShardedDataParallelPlugin())


def check_impl(config: TrainConfig) -> None:
    """Refuse an implementation of the boundaries that cannot run here."""
    from shadowpeft.ops import choice

    choice.boundary_of(config.impl)
