"""The loan of a base: what it looked like when it was lent, so that it can be given back the same."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

# transformers sets these two attributes on modules: the first on a decoder once it has put its
# output-capturing hooks on the blocks; the second on each module that can checkpoint.
_CAPTURING = "_output_capturing_hooks_installed"
_CHECKPOINTING = "gradient_checkpointing"


@dataclass(frozen=True)
class Loan:
    """The flags and hooks of a base when it was lent.

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
    def freeze(cls, base: PreTrainedModel) -> "Loan":
        """Note the flags and hooks of a base, then freeze its weights."""
        modules = dict(base.named_modules())
        checkpointing = (name for name, module in modules.items() if vars(module).get(_CHECKPOINTING))
        loan = cls(
            trainable=frozenset(name for name, weight in base.named_parameters() if weight.requires_grad),
            training=frozenset(name for name, module in modules.items() if module.training),
            checkpointing=frozenset(checkpointing),
            capturing=frozenset(name for name, module in modules.items() if _CAPTURING in vars(module)),
            hooks={name: frozenset(_hooks(module)) for name, module in modules.items()},
            attention=base.config._attn_implementation,
            experts=base.config._experts_implementation,
        )
        base.requires_grad_(False)
        return loan

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
            base.set_attn_implementation(self.attention)
        if base.config._experts_implementation != self.experts and self.experts is not None:
            base.set_experts_implementation(self.experts)


def _hooks(module: nn.Module) -> set[int]:
    return {*module._forward_hooks, *module._forward_pre_hooks}


def _hook_options(module: nn.Module) -> tuple[dict[int, bool], ...]:
    """Return the dictionaries in which torch keeps how a hook is called; compiled code reads them as well."""
    return (
        module._forward_hooks_with_kwargs,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
