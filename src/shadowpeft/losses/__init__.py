"""The losses of both heads: of logits, or of hidden states where nobody wants the logits.

`normalised` is what the model calls. `linear_ce`, `divergence` and `overlap` are the sweeps beneath it, which
never hold the logits of a batch, and `frozen_head` is what they are built from. Imports `arch` and `ops`.
"""

from shadowpeft.losses.normalised import (
    classification_divergence,
    classification_loss,
    frozen_head_divergence,
    frozen_head_losses,
    next_token_divergence,
    next_token_loss,
)

__all__ = [
    "classification_divergence",
    "classification_loss",
    "frozen_head_divergence",
    "frozen_head_losses",
    "next_token_divergence",
    "next_token_loss",
]
