"""What a base looked like when it was lent, so that it can be given back the same."""

from dataclasses import dataclass

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Lent:
    """The names of what was trainable, of what was in training mode, and of what was set to gradient checkpointing."""

    trainable: frozenset[str]
    training: frozenset[str]
    checkpointing: frozenset[str]

    @classmethod
    def freeze(cls, base: PreTrainedModel) -> "Lent":
        """Note the base's flags, then freeze its weights."""
        trainable = frozenset(name for name, parameter in base.named_parameters() if parameter.requires_grad)
        training = frozenset(name for name, module in base.named_modules() if module.training)
        checkpointing = frozenset(name for name, module in base.named_modules() if vars(module).get("gradient_checkpointing"))
        base.requires_grad_(False)
        return cls(trainable, training, checkpointing)

    def restore(self, base: PreTrainedModel) -> None:
        """Set every flag back to what was noted."""
        for name, parameter in base.named_parameters():
            parameter.requires_grad_(name in self.trainable)
        for name, module in base.named_modules():
            module.training = name in self.training
            # transformers keeps this flag on each module that can checkpoint; its switch was renamed between 5.17 and 5.23.
            if "gradient_checkpointing" in vars(module):
                vars(module)["gradient_checkpointing"] = name in self.checkpointing
