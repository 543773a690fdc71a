"""What teaches a draft head, and what it would draft.

Shape legend: B rows, T tokens, D width of the base, N tokens of all rows, n of them at hand, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from shadowpeft import arch, losses
from shadowpeft.config import DistilLoss
from shadowpeft.losses.frozen_head import Head
from shadowpeft.model.shadowed import ShadowedModel

Batch = Mapping[str, Tensor]
# Tokens whose logits are at hand at once where only the largest is asked for.
_AT_A_TIME = 256


def draft_loss(model: ShadowedModel, batch: Batch, kind: DistilLoss) -> Tensor:
    """Compute how far the active adapter's drafts are from the attached answer, over the labelled tokens.

    The gradient goes to the draft head and to nothing else: what it reads and what it is compared with are
    computed without one.

    Args:
        model: in evaluation mode.
        batch: `input_ids`, `attention_mask` and `labels`, (B, T) each; labels are token ids, -100 for what
            is no answer, and are shifted here.
        kind: `kl` or `lk`, as in `losses.next_token_divergence`.
    """
    base, labels_BT = model._base(), batch["labels"]
    h_BTD, s_BTD = _states(model, batch)
    d_BTD = model.adapter.for_drafts(s_BTD)
    if arch.has_plain_frozen_head(base):
        return losses.frozen_head_divergence(h_BTD, d_BTD, Head.of(base), labels_BT, None, None, kind)
    both_BTV = arch.logits(base, h_BTD), arch.logits(base, d_BTD)
    return losses.next_token_divergence(*both_BTV, labels_BT, None, None, kind)


@torch.no_grad()
def next_tokens(model: ShadowedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the likeliest next token behind each token, attached and as a draft, (B, T) each.

    No logits of a batch are held.

    Args:
        model: this and the batch as in `draft_loss`; the labels are not read.
        batch: token ids and mask.
    """
    base = model._base()
    h_BTD, s_BTD = _states(model, batch)

    def likeliest(x_BTD: Tensor) -> Tensor:
        parts = x_BTD.flatten(0, 1).split(_AT_A_TIME)
        found_N = torch.cat([arch.logits(base, x_nD[None])[0].argmax(-1) for x_nD in parts])
        return found_N.view(x_BTD.shape[:2])

    return likeliest(h_BTD), likeliest(model.adapter.for_drafts(s_BTD))


@torch.no_grad()
def _states(model: ShadowedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what the head reads of the attached model, and s^(0), (B, T, D) each."""
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    inputs = {**read, "position_ids": None, "inputs_embeds": None}
    out, s_BTD, _ = model._run_shadowed(model.adapter, inputs, given_cache=None, use_cache=False, kwargs={})
    return out.last_hidden_state, s_BTD
