"""Training under accelerate's FSDP2: what it must know of a shadowed model, and what does not work."""

from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_accelerate_available

from shadowpeft import arch
from shadowpeft.errors import ConfigError, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin


# The types of autocast by accelerate's names.
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def refuse(plugin: "FullyShardedDataParallelPlugin") -> None:
    """Raise if accelerate's FSDP settings ask for what does not work here.

    Raises:
        UserError: accelerate is too old: it would not leave the norms whole, or make the frozen base float32.
        ConfigError: names the setting to change.
    """
    if not is_accelerate_available("1.13.0"):
        raise UserError("FSDP needs accelerate 1.13 or later; pip install -U accelerate")
    if plugin.fsdp_version != 2:
        raise ConfigError(
            f"of FSDP only version 2 is supported, got {plugin.fsdp_version}; set fsdp_version: 2"
        )
    if plugin.activation_checkpointing:
        raise ConfigError(
            "FSDP's own activation checkpointing drops other values when it recomputes a dropout; "
            "set fsdp_activation_checkpointing: false and use the training settings' gradient checkpointing "
            "(--gradient-checkpointing)"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError(
            "attaching needs the base's weights in every process; set fsdp_cpu_ram_efficient_loading: false"
        )
    if plugin.min_num_params is not None:
        raise ConfigError(
            "units by size would cut weights that are read together; "
            "set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"
        )
    if plugin.ignored_modules:
        raise ConfigError(
            "the modules that FSDP leaves whole follow from the model; leave out fsdp_ignored_modules"
        )


def prepare(accelerator: "Accelerator", model: PreTrainedModel) -> None:
    """Set up accelerate's FSDP2 for a shadowed model; without FSDP do nothing.

    The input norms of the base's blocks stay whole on every device: the variant `normed` reads through a
    block's norm before the block is called. Weights keep their types and the forward pass runs under
    autocast, as in one process; accelerate would cast the trained weights, their gradients and the loss to
    the lower precision.

    Args:
        accelerator: the one whose `prepare(model, optimizer)` is called next.
        model: the shadowed model, not sharded yet.

    Raises:
        UserError: as `refuse`.
    """
    if accelerator.distributed_type != "FSDP":
        return
    plugin = accelerator.state.fsdp_plugin
    refuse(plugin)
    base = model.get_submodule("base")
    assert isinstance(base, PreTrainedModel)
    norms = [arch.input_norm_of(block, arch.family_of(base)) for block in arch.blocks_of(base)]
    plugin.ignored_modules = [norm.to(accelerator.device) for norm in norms if isinstance(norm, nn.Module)]
    precision = _PRECISIONS.get(accelerator.mixed_precision)
    if precision is not None:
        plugin.mixed_precision_policy = None
        _run_under_autocast(model, accelerator.device.type, precision)


def _run_under_autocast(model: PreTrainedModel, device: str, precision: torch.dtype) -> None:
    forward = model.forward

    @wraps(forward)
    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, precision):
            return forward(*args, **kwargs)

    model.forward = under_autocast
