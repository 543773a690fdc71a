"""The base as it was built, so that one method can be taken off it and another put on."""

from torch import nn
from transformers import PreTrainedModel

from shadowpeft.decoder.loan import Flags

Children = dict[nn.Module, dict[str, nn.Module | None]]


class BaseSnapshot:
    """What a base consists of before a method is put on it.

    LoRA replaces its linear layers, the shadows of others its blocks, and both leave attributes and hooks.
    Each library has its own way back or none; this one is the same for all, and does not look inside the
    method.

    Args:
        base: the base, before anything is put on it; it is frozen here.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base.requires_grad_(False)
        self.flags = Flags.of(base)
        self.attributes = set(vars(base))
        self.children: Children = {module: dict(module._modules) for module in base.modules()}

    def changes(self) -> Children:
        """Return the submodules as the method on the base has replaced them, for `reapply`."""
        return {
            module: dict(module._modules)
            for module, children in self.children.items()
            if module._modules != children
        }

    def reapply(self, changes: Children) -> None:
        """Put a method that was removed on the base again."""
        _set(changes)

    def restore(self) -> None:
        """Make the base what it was: its modules, hooks, flags and attributes."""
        _set(self.children)
        for name in set(vars(self.base)) - self.attributes:
            del vars(self.base)[name]
        self.flags.restore(self.base)


def _set(children: Children) -> None:
    for module, own in children.items():
        if module._modules != own:
            # In place, so that the order of the submodules is the noted one, too.
            module._modules.clear()
            module._modules.update(own)
