"""What a base looked like when it was lent, so that it can be given back the same."""

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lent:
    """The names of what was trainable and in training mode, and whether gradient checkpointing was on."""

    trainable: frozenset[str]
    training: frozenset[str]
    checkpointing: bool

    @classmethod
    def freeze(cls, base: PreTrainedModel) -> "Lent":
        """Note the base's flags, then freeze its weights."""
        trainable = frozenset(name for name, parameter in base.named_parameters() if parameter.requires_grad)
        training = frozenset(name for name, module in base.named_modules() if module.training)
        base.requires_grad_(False)
        return cls(trainable, training, _checkpoints(base))

    def restore(self, base: PreTrainedModel) -> None:
        """Set every flag back to what was noted."""
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        for name, module in base.named_modules():
            module.training = name in self.training
        if _checkpoints(base) and not self.checkpointing:
            base.gradient_checkpointing_disable()


def _checkpoints(base: PreTrainedModel) -> bool:
    # transformers keeps the flag on each block and renamed the property that sums them up between 5.17 and 5.23.
    return any(vars(module).get("gradient_checkpointing", False) for module in base.modules())
