"""A loss that others compute from the model's answer has no part of the shadow's: it is refused, or said."""

import warnings

import torch

from shadowpeft.errors import UserError
from shadowpeft.shadow.adapter import Adapter


def check(adapter: Adapter, labels_were_taken: bool) -> None:
    """Refuse or warn, in a call of a model that trains and has no labels to compute the shadow's loss from.

    Calls without gradients, and adapters whose shadow has no loss of its own, are as they should be.

    Args:
        adapter: the one that trains.
        labels_were_taken: whether transformers' Trainer counted labels and then kept them to itself.

    Raises:
        UserError: they were taken, and the user asked for the joint loss.
    """
    weight = adapter.settings.shadow_loss_weight
    if not weight or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    if labels_were_taken:
        raise UserError(
            "the Trainer keeps the labels for label_smoothing_factor or compute_loss_func, so the shadow's "
            "part of the loss would be missing: use shadowpeft.trainer.ShadowTrainer, which computes it of "
            "both heads, or leave the setting out"
        )
    warnings.warn(
        "a loss computed outside the model has no part of the shadow's own loss "
        f"(shadow_loss_weight {weight:g}), so the detached model is not trained to answer: pass labels to "
        "the model, or use output_shadow_logits=True and add it, or set shadow_loss_weight=0",
        stacklevel=3,
    )
