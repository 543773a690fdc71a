"""The losses of both heads: of logits, or of hidden states where nobody wants the logits.

`normalised` is what the model calls; the sweeps over a frozen head beneath it never hold the logits of a batch.
Imports `arch` and `ops`.
"""

from shadowpeft.losses.normalised import (
    classification_divergence,
    classification_loss,
    frozen_head_divergence,
    frozen_head_losses,
    next_token_divergence,
    next_token_loss,
    pool_last,
)

__all__ = [
    "classification_divergence",
    "classification_loss",
    "frozen_head_divergence",
    "frozen_head_losses",
    "next_token_divergence",
    "next_token_loss",
    "pool_last",
]
