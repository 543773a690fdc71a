"""What a forward pass returns: transformers' outputs with the shadow's losses and logits beside them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils import ModelOutput

from shadowpeft.arch.versions import CacheByBothNames


@dataclass
class ShadowedCausalLMOutput(CacheByBothNames, CausalLMOutputWithPast):  # type: ignore[override]
    """Output of a shadowed language model.

    Attributes:
        loss: L of eq. 9.
        shadow_loss: the unweighted L_shadow of eq. 8, whatever the setting `shadow_distil`; at 1, where L has
            no part of it, it has no gradient.
        shadow_logits: head(s^(0)), if asked for.
        distil_loss: the unweighted distance of the shadow's answer from the attached one; `None` where
            `shadow_distil` is 0.
        attached_loss: the first term of eq. 9, the cross-entropy of the attached model alone. Not in the
            plain tuple.
    """

    shadow_loss: Tensor | None = None
    shadow_logits: Tensor | None = None
    distil_loss: Tensor | None = None
    attached_loss: Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values that are not `None`, and the logits beside a loss, without `attached_loss`."""
        return _plain(self)


@dataclass
class ShadowedClassifierOutput(CacheByBothNames, SequenceClassifierOutputWithPast):  # type: ignore[override]
    """Output of a shadowed classifier; its losses are those of `ShadowedCausalLMOutput`."""

    shadow_loss: Tensor | None = None
    shadow_logits: Tensor | None = None
    distil_loss: Tensor | None = None
    attached_loss: Tensor | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the values that are not `None`, and the logits beside a loss, without `attached_loss`."""
        return _plain(self)


def _plain(output: ModelOutput) -> tuple[Any, ...]:
    # In a plain tuple a value is known by its position alone: one more would move those behind it, and logits
    # that were not computed keep their place beside the loss.
    names = [name for name in output if name != "attached_loss"]
    if "loss" in names and "logits" not in names:
        names.insert(1, "logits")
    return tuple(output.get(name) for name in names)
