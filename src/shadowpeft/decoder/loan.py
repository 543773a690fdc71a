"""What a base looked like when it was lent, so that it can be given back the same."""

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

# Set by transformers on a decoder once it has put its output-capturing hooks on the blocks.
_CAPTURING = "_output_capturing_hooks_installed"


@dataclass(frozen=True)
class Lent:
    """The names of what was trainable, in training mode, checkpointing and capturing; the hooks by module; the attention code."""

    trainable: frozenset[str]
    training: frozenset[str]
    checkpointing: frozenset[str]
    capturing: frozenset[str]
    hooks: dict[str, frozenset[int]]
    attention: str | None

    @classmethod
    def freeze(cls, base: PreTrainedModel) -> "Lent":
        """Note the base's flags and hooks, then freeze its weights."""
        modules = dict(base.named_modules())
        lent = cls(
            trainable=frozenset(
                name for name, parameter in base.named_parameters() if parameter.requires_grad
            ),
            training=frozenset(name for name, module in modules.items() if module.training),
            checkpointing=frozenset(
                name for name, module in modules.items() if vars(module).get("gradient_checkpointing")
            ),
            capturing=frozenset(name for name, module in modules.items() if _CAPTURING in vars(module)),
            hooks={name: frozenset(_hooks(module)) for name, module in modules.items()},
            attention=base.config._attn_implementation,
        )
        base.requires_grad_(False)
        return lent

    def restore(self, base: PreTrainedModel) -> None:
        """Set every flag back to what was noted and take off the hooks that came since."""
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        for name, module in base.named_modules():
            module.training = name in self.training
            # transformers keeps this flag on each module that can checkpoint; its switch was renamed between 5.17 and 5.23.
            if "gradient_checkpointing" in vars(module):
                vars(module)["gradient_checkpointing"] = name in self.checkpointing
            if name not in self.capturing:
                vars(module).pop(_CAPTURING, None)
            for number in _hooks(module) - self.hooks.get(name, frozenset()):
                for hooks in (module._forward_hooks, module._forward_pre_hooks, *_about_hooks(module)):
                    hooks.pop(number, None)
        if base.config._attn_implementation != self.attention and self.attention is not None:
            base.set_attn_implementation(self.attention)


def _hooks(module: nn.Module) -> set[int]:
    return {*module._forward_hooks, *module._forward_pre_hooks}


def _about_hooks(module: nn.Module) -> tuple[dict[int, bool], ...]:
    """Return where torch keeps how a hook is to be called; what was compiled asks these, too."""
    return (
        module._forward_hooks_with_kwargs,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_always_called,
    )
