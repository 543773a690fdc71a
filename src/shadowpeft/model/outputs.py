"""What a forward pass gives back: transformers' outputs with the shadow's loss and logits beside them."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast


@dataclass
class ShadowedCausalLMOutput(CausalLMOutputWithPast):
    """Output of a shadowed language model.

    `loss` is L of eq. 9, `shadow_loss` the unweighted L_shadow of eq. 8, whatever the setting `shadow_distil`; at 1, where L has no part
    of it, it has no gradient. `distil_loss`, `None` at 0, is the unweighted distance of the shadow's answer from the attached one.
    """

    shadow_loss: Tensor | None = None
    shadow_logits: Tensor | None = None
    distil_loss: Tensor | None = None


@dataclass
class ShadowedClassifierOutput(SequenceClassifierOutputWithPast):
    """Output of a shadowed classifier; its losses are those of `ShadowedCausalLMOutput`."""

    shadow_loss: Tensor | None = None
    shadow_logits: Tensor | None = None
    distil_loss: Tensor | None = None
