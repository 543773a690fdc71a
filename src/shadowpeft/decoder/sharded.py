"""Several GPUs by FSDP2: which weights are gathered together, and how tensors leave and enter shards.

torch gathers the weights of a unit while the unit is called. Units are the blocks of base and shadow, as in
any model that accelerate shards, and the boundary weights of each block (`BoundaryWeights`). accelerate
itself makes units of the embeddings and the head. The few weights that are left are gathered for the whole
forward and backward pass. DDP needs none of this.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map_only

T = TypeVar("T")


def is_frozen_linear(module: nn.Module) -> bool:
    """Return whether a module is a unit of its own and, apart from sharding, only a frozen linear layer."""
    if not _is_distributed():
        return False
    from torch.distributed.fsdp import FSDPModule

    # FSDP's own hooks, one before and one after the call; any other hook changes what the layer computes.
    own_hooks = len(module._forward_pre_hooks) == len(module._forward_hooks) == 1
    trains = any(weight.requires_grad for weight in module.parameters())
    return type(module).__bases__ == (FSDPModule, nn.Linear) and own_hooks and not trains


def with_whole(module: nn.Module, compute: Callable[[], T]) -> T:
    """Return the result of `compute`, with the module's weights gathered meanwhile.

    It serves a `compute` that reads the weights without calling the module, in the forward pass alone.
    """
    if not is_frozen_linear(module):
        return compute()
    unit: Any = module
    unit.unshard()
    result = compute()
    unit.reshard()
    return result


def whole(state: Mapping[str, Any]) -> dict[str, Any]:
    """Gather every sharded tensor of a (nested) state. All processes must call it; each gets everything."""
    if not _is_distributed():
        return dict(state)
    from torch.distributed.tensor import DTensor

    return tree_map_only(DTensor, DTensor.full_tensor, dict(state))


def divided(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Undo `whole` for the state of an optimizer: shard each tensor as its weight is sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moved = {
        number: {name: _cut(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": moved}


def like(state: Mapping[str, Tensor], sharded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `whole` for a module: shard each tensor as the one of its name is sharded."""
    if not _is_distributed():
        return dict(state)
    return {name: _cut(value, sharded.get(name, value)) for name, value in state.items()}


def _cut(value: Any, weight: Tensor) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(
        value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
    )


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
