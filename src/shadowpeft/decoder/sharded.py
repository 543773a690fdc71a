"""Several GPUs by FSDP2: what is gathered together, what stays whole, and how tensors leave their shards and go back.

torch gathers the weights of a unit while the unit is called. Units are the blocks of base and shadow, as in any model that accelerate
shards, and the boundary weights of each block (`BoundaryWeights`). Embeddings and head are units by accelerate's own doing; the little
that is left is gathered for the whole forward and backward pass. DDP needs nothing of this.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedModel
from transformers.utils import is_accelerate_available

from shadowpeft import arch
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.shadow.boundary import BoundaryWeights

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

T = TypeVar("T")


def unit_classes(base: PreTrainedModel, adapters: nn.ModuleDict) -> set[str]:
    """Name the classes of which every module is a unit, as accelerate's `TRANSFORMER_BASED_WRAP` asks for them."""
    units = [arch.blocks_of(base)[0], *(module for module in adapters.modules() if isinstance(module, BoundaryWeights))]
    for adapter in adapters.values():
        assert isinstance(adapter, Adapter)
        units.append(adapter.shadow.backbone.get_submodule(f"{adapter.shadow.family.blocks}.0"))
    return {type(module).__name__ for module in units}


def refuse(plugin: "FullyShardedDataParallelPlugin") -> None:
    """Raise if accelerate's FSDP settings ask for what does not work here.

    Raises:
        UserError: accelerate is too old: it would not leave the norms whole, or make the frozen base float32.
        ConfigError: names the setting to change.
    """
    if not is_accelerate_available("1.13.0"):
        raise UserError("FSDP needs accelerate 1.13 or later; pip install -U accelerate")
    if plugin.fsdp_version != 2:
        raise ConfigError(f"of FSDP only version 2 is supported, got {plugin.fsdp_version}; set fsdp_version: 2")
    if plugin.activation_checkpointing:
        raise ConfigError(
            "FSDP's own activation checkpointing drops other values when it recomputes a dropout; set fsdp_activation_checkpointing: "
            "false and use the training settings' gradient checkpointing (--gradient-checkpointing)"
        )
    if plugin.cpu_ram_efficient_loading:
        raise ConfigError("attaching needs the base's weights in every process; set fsdp_cpu_ram_efficient_loading: false")
    if plugin.min_num_params is not None:
        raise ConfigError("units by size would cut weights that are read together; set fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP")
    if plugin.ignored_modules:
        raise ConfigError("the modules that FSDP leaves whole follow from the model; leave out fsdp_ignored_modules")


# What accelerate calls the types of autocast.
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def prepare(accelerator: "Accelerator", model: PreTrainedModel) -> None:
    """Tell accelerate what its FSDP2 cannot know of a shadowed model; without FSDP this does nothing.

    The input norms of the base's blocks stay whole on every device: the variant `normed` reads through a block's norm before the block is
    called. Weights keep their types and the forward pass runs under autocast, as in one process; accelerate would cast the trained weights,
    their gradients and the loss to the lower precision.

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
        plugin.mixed_precision_policy, forward = None, model.forward

        @wraps(forward)
        def under_autocast(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(accelerator.device.type, precision):
                return forward(*args, **kwargs)

        model.forward = under_autocast


def is_frozen_linear(module: nn.Module) -> bool:
    """Tell whether a module is a unit of its own and, sharding aside, no more than the weight and bias of a frozen linear layer."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    own_hooks = len(module._forward_pre_hooks) == len(module._forward_hooks) == 1
    trains = any(weight.requires_grad for weight in module.parameters())
    return type(module).__bases__ == (FSDPModule, nn.Linear) and own_hooks and not trains


def with_whole(module: nn.Module, compute: Callable[[], T]) -> T:
    """Return what `compute` does with the weights of a module that it does not call and that it needs in the forward pass alone."""
    if not is_frozen_linear(module):
        return compute()
    unit: Any = module
    unit.unshard()
    result = compute()
    unit.reshard()
    return result


def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """Gather every sharded tensor of a (nested) state; all processes must call it, and each gets all of it."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return dict(state)
    from torch.distributed.tensor import DTensor

    return tree_map_only(DTensor, DTensor.full_tensor, dict(state))


def divided(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Undo `whole` for the state of an optimizer: cut each tensor as the weight it belongs to is cut."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    def cut(value: Any, weight: Tensor) -> Any:
        if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
            return value
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moved = {number: {name: cut(value, weights[number]) for name, value in values.items()} for number, values in state["state"].items()}
    return {**state, "state": moved}
