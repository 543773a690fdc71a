"""The base as it was built, so that one method can be taken off it and another put on."""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from shadowpeft.decoder.loan import Flags


class Changes(NamedTuple):
    """What a method has changed on the base.

    Attributes:
        children: the submodules of each module that has others now.
        attributes: what each module has besides its own.
    """

    children: dict[nn.Module, dict[str, nn.Module | None]]
    attributes: dict[nn.Module, dict[str, Any]]


class BaseSnapshot:
    """What a base consists of before a method is put on it.

    LoRA replaces its linear layers, the shadows of others its blocks, liger-kernel the methods of its layers;
    all leave attributes, some hooks. Each library has its own way back or none; this one is the same for all,
    and does not look inside the method.

    Args:
        base: the base, before anything is put on it; it is frozen here.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base.requires_grad_(False)
        self.flags = Flags.of(base)
        self.attributes = {module: set(vars(module)) for module in base.modules()}
        self.children = {module: dict(module._modules) for module in base.modules()}

    def changes(self) -> Changes:
        """Return what the method on the base has changed, for `reapply`."""
        children = {
            module: dict(module._modules) for module, own in self.children.items() if module._modules != own
        }
        attributes = {module: _others(module, own) for module, own in self.attributes.items()}
        return Changes(children, {module: others for module, others in attributes.items() if others})

    def reapply(self, changes: Changes) -> None:
        """Put a method that was removed on the base again."""
        _set(changes.children)
        for module, others in changes.attributes.items():
            vars(module).update(others)

    def restore(self) -> None:
        """Make the base what it was: its modules, hooks, flags and attributes."""
        _set(self.children)
        for module, own in self.attributes.items():
            for name in _others(module, own):
                del vars(module)[name]
        self.flags.restore(self.base)


def _others(module: nn.Module, own: set[str]) -> dict[str, Any]:
    """Return the attributes of a module but its own."""
    return {name: value for name, value in vars(module).items() if name not in own}


def _set(children: dict[nn.Module, dict[str, nn.Module | None]]) -> None:
    for module, own in children.items():
        if module._modules != own:
            # In place, so that the order of the submodules is the noted one, too.
            module._modules.clear()
            module._modules.update(own)
