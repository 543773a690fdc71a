"""Weights that accelerate keeps elsewhere, in memory or on a disk, and brings when a module is called.

Meanwhile they are on the meta device, which holds no values, and torch computes with such tensors without a
word. Whoever reads the weights of a module without calling it brings them here first.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch import nn
from transformers.utils import is_accelerate_available

from shadowpeft.errors import UserError


def is_offloaded(read: Iterable[object]) -> bool:
    """Return whether weights of modules, or of the modules directly in them, are on the meta device.

    It is asked at every boundary, so it reads torch's own dictionaries: `parameters()` takes far longer.

    Args:
        read: what is read; anything but a module has no weights.
    """
    for module in read:
        if not isinstance(module, nn.Module):
            continue
        for part in (module, *module._modules.values()):
            for weight in part._parameters.values():  # type: ignore[union-attr]
                if weight is not None and weight.is_meta:
                    return True
    return False


@contextmanager
def in_memory(read: Iterable[object]) -> Iterator[None]:
    """Bring the offloaded weights of modules, and of modules in them, while the context lasts.

    Args:
        read: as `is_offloaded` takes it.

    Raises:
        UserError: weights are on the meta device, and nothing knows their values.
    """
    with ExitStack() as stack:
        for module in read:
            if not isinstance(module, nn.Module):
                continue
            for name, part in module.named_modules():
                if any(weight.is_meta for weight in part.parameters(recurse=False)):
                    _bring(stack, part, name)
        yield


def _bring(stack: ExitStack, module: nn.Module, name: str) -> None:
    if is_accelerate_available():
        from accelerate.utils import align_module_device

        stack.enter_context(align_module_device(module))
    if any(weight.is_meta for weight in module.parameters(recurse=False)):
        raise UserError(
            f"the weights of {name or type(module).__name__} are on the meta device, which holds no values; "
            "load them onto a device, or offload them with accelerate's cpu_offload, disk_offload or "
            "dispatch_model"
        )
