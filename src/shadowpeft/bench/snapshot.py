"""The base as it was built, so that methods that change it can be taken off it, and one that is kept put on again."""

from torch import nn
from transformers import PreTrainedModel

from shadowpeft.decoder.loan import Lent

Children = dict[nn.Module, dict[str, nn.Module | None]]


class Bare:
    """Note what a base consists of. LoRA replaces its linear layers, the shadows of others its blocks, and both leave marks and hooks.

    Each library has a way back of its own or none; this one is the same for all, and takes no part of the method apart.

    Args:
        base: the base, before anything is put on it; frozen here.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        self.base = base.requires_grad_(False)
        self.lent = Lent.freeze(base)
        self.names = set(vars(base))
        self.children: Children = {module: dict(module._modules) for module in base.modules()}

    def dressing(self) -> Children:
        """Tell what a method that is on the base has replaced, for `put_on`."""
        return {
            module: dict(module._modules)
            for module, children in self.children.items()
            if module._modules != children
        }

    def put_on(self, dressing: Children) -> None:
        """Put a method that was taken off on again."""
        _set(dressing)

    def take_off(self) -> None:
        """Make the base what it was: modules, hooks, flags and marks."""
        _set(self.children)
        for name in set(vars(self.base)) - self.names:
            del vars(self.base)[name]
        self.lent.restore(self.base)


def _set(children: Children) -> None:
    for module, own in children.items():
        if module._modules != own:
            module._modules.clear()
            module._modules.update(own)
