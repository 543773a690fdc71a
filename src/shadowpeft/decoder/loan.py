"""The loan of a base: what it looked like when it was lent, so that it can be given back the same.

Several models may hold one base. It stays frozen while any of them holds it, and the last one to give it back
gives it back as it was before the first one took it.
"""

import dataclasses
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import UserError

# transformers sets these two attributes on modules: the first on a decoder once it has put its
# output-capturing hooks on the blocks; the second on each module that can checkpoint.
_CAPTURING = "_output_capturing_hooks_installed"
_CHECKPOINTING = "gradient_checkpointing"


@dataclass(frozen=True)
class Flags:
    """The flags and hooks of a base.

    Attributes:
        trainable: names of the parameters that required gradients.
        training: names of the modules in training mode.
        checkpointing: names of the modules with gradient checkpointing on.
        capturing: names of the modules that captured outputs.
        hooks: numbers of the forward hooks, by the name of their module.
        attention: the attention implementation.
        experts: the implementation of a mixture's experts.
    """

    trainable: frozenset[str]
    training: frozenset[str]
    checkpointing: frozenset[str]
    capturing: frozenset[str]
    hooks: dict[str, frozenset[int]]
    attention: str | None
    experts: str | None

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Flags":
        """Note the flags and hooks of a base."""
        modules = dict(base.named_modules())
        checkpointing = (name for name, module in modules.items() if vars(module).get(_CHECKPOINTING))
        return cls(
            trainable=frozenset(trained_weights(base)),
            training=frozenset(name for name, module in modules.items() if module.training),
            checkpointing=frozenset(checkpointing),
            capturing=frozenset(name for name, module in modules.items() if _CAPTURING in vars(module)),
            hooks={name: frozenset(_hooks(module)) for name, module in modules.items()},
            attention=base.config._attn_implementation,
            experts=base.config._experts_implementation,
        )

    def restore(self, base: PreTrainedModel) -> None:
        """Set every flag back to what was noted and remove the hooks that were added since."""
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        for name, module in base.named_modules():
            module.training = name in self.training
            if _CHECKPOINTING in vars(module):
                vars(module)[_CHECKPOINTING] = name in self.checkpointing
            # Otherwise transformers would not put its hooks back on when they are needed again.
            if name not in self.capturing:
                vars(module).pop(_CAPTURING, None)
            for number in _hooks(module) - self.hooks.get(name, frozenset()):
                for hooks in (module._forward_hooks, module._forward_pre_hooks, *_hook_options(module)):
                    hooks.pop(number, None)
        if base.config._attn_implementation != self.attention and self.attention is not None:
            arch.set_implementations(base, attention=self.attention)
        if base.config._experts_implementation != self.experts and self.experts is not None:
            arch.set_implementations(base, experts=self.experts)


class Loan:
    """One holder's loan of a base. It ends when the base is given back, or with its holder.

    Attributes:
        flags: of the base before anyone held it.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        """Note the flags of a base, unless another holder has frozen it already, and freeze its weights.

        Raises:
            UserError: another model holds the base and trains weights of it.
        """
        loans, trained = _loans_of(base), trained_weights(base)
        if loans and trained:
            raise UserError(
                f"another model holds this base and trains its weight {trained[0]}: give the base back with "
                "unload() first, or put a second adapter beside it with add_adapter()"
            )
        if loans:
            self.flags = _first_flags[base]
        else:
            self.flags = _flags_of_unheld(base, trained)
        self.register(base)
        base.requires_grad_(False)

    def register(self, base: PreTrainedModel) -> None:
        """Count as a holder of `base`, also if it is the copy of a base that was lent."""
        _loans_of(base).add(self)
        _first_flags[base] = self.flags

    def is_shared(self, base: PreTrainedModel) -> bool:
        """Return whether another model holds the base, too."""
        return len(_loans_of(base)) > 1

    def give_back(self, base: PreTrainedModel) -> None:
        """End the loan. With the last one every flag is set back."""
        loans = _loans_of(base)
        loans.discard(self)
        if not loans:
            self.flags.restore(base)
            _first_flags.pop(base, None)


# Both by the base itself, and not on it: a copy of a base is not lent.
_loans: WeakKeyDictionary[nn.Module, "WeakSet[Loan]"] = WeakKeyDictionary()
_first_flags: WeakKeyDictionary[nn.Module, Flags] = WeakKeyDictionary()


def trained_weights(base: PreTrainedModel) -> list[str]:
    """Name the weights of a base that require gradients."""
    return [name for name, weight in base.named_parameters() if weight.requires_grad]


def _loans_of(base: PreTrainedModel) -> "WeakSet[Loan]":
    return _loans.setdefault(base, WeakSet())


def _flags_of_unheld(base: PreTrainedModel, trained: list[str]) -> Flags:
    """Note the flags of a base that nobody holds.

    A holder that was lost, and never gave the base back, has left it frozen: what trained before is known.
    """
    flags = Flags.of(base)
    if not trained and base in _first_flags:
        flags = dataclasses.replace(flags, trainable=_first_flags[base].trainable)
    return flags


def _hooks(module: nn.Module) -> set[int]:
    return {*module._forward_hooks, *module._forward_pre_hooks}


def _hook_options(module: nn.Module) -> tuple[dict[int, bool], ...]:
    """Return the dictionaries in which torch keeps how a hook is called; compiled code reads them as well."""
    return (
        module._forward_hooks_with_kwargs,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
