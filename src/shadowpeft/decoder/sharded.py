"""Several GPUs by FSDP2: what is gathered together, what stays whole, and how tensors leave their shards and go back.

torch gathers the weights of a unit while the unit is called. Units are the blocks of base and shadow, as in any model that accelerate
shards, and the boundary weights of each block (`BoundaryWeights`). Embeddings and head are units by accelerate's own doing; the little
that is left is gathered for the whole forward and backward pass. DDP needs nothing of this.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    pass

T = TypeVar("T")


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
        return distribute_tensor(
            value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
        )

    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moved = {
        number: {name: cut(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": moved}
