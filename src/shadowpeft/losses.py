"""The losses of both heads, normalised as the Trainer asks: of logits, or of hidden states where nobody wants the logits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss, fixed_cross_entropy

from shadowpeft.linear_ce import IGNORED, token_losses

Count = Tensor | None


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor | None, shift_labels: Tensor | None, num_items: Count) -> Tensor:
    """Cross-entropy of the next token: mean over the labelled tokens, or their sum over `num_items` under accumulation.

    Args:
        logits_BTV: the logits of either head.
        labels_BT: token ids, -100 where no loss is wanted; shifted here.
        shift_labels: labels already shifted, as sequence parallelism passes them, in place of `labels_BT`.
        num_items: labelled tokens in the whole accumulated batch (`num_items_in_batch` of the Trainer), or `None`.
    """
    return ForCausalLMLoss(logits_BTV, labels_BT, logits_BTV.shape[-1], num_items_in_batch=num_items, shift_labels=shift_labels)


def frozen_head_losses(
    states_BTD: Sequence[Tensor],
    head: nn.Linear,
    softcap: float | None,
    labels_BT: Tensor | None,
    shift_labels: Tensor | None,
    num_items: Count,
) -> list[Tensor]:
    """Compute `next_token_loss` of several hidden states through one frozen head, all in one sweep and without the logits.

    Args:
        states_BTD: what the head reads, all of one shape.
        head: a linear layer of which nothing but weight and bias counts (`arch.has_plain_frozen_head`).
        softcap: bound of the logits, if any.
        labels_BT: this and what follows as in `next_token_loss`.
        shift_labels: labels already shifted.
        num_items: labelled tokens in the whole accumulated batch, or `None`.

    Returns:
        One loss for each state.
    """
    if shift_labels is None:
        assert labels_BT is not None
        shift_labels = F.pad(labels_BT, (0, 1), value=IGNORED)[..., 1:]
    targets_N = shift_labels.reshape(-1).to(head.weight.device)
    states_ND = [state_BTD.flatten(0, 1) for state_BTD in states_BTD]
    count = (targets_N != IGNORED).sum() if num_items is None else num_items
    # A prompt's tokens need no logits. How many are left is not known to a compiled graph, which sweeps over all.
    if not torch.compiler.is_compiling():
        rows = (targets_N != IGNORED).nonzero()[:, 0]
        targets_N = targets_N[rows]
        states_ND = [state_ND.index_select(0, rows) for state_ND in states_ND]
    losses = token_losses(torch.cat(states_ND), targets_N.repeat(len(states_ND)), head.weight, head.bias, softcap)
    if isinstance(count, Tensor):  # of the Trainer's own device, or a number that a user gives
        count = count.to(targets_N.device)
    return [loss_N.sum() / count for loss_N in losses.view(len(states_ND), len(targets_N))]


def classification_loss(logits_BC: Tensor, labels: Tensor, config: PretrainedConfig, num_items: Count) -> Tensor:
    """Loss of a pooled classification head: squared error, cross-entropy or binary cross-entropy by `config.problem_type`.

    The type is worked out as transformers does when the configuration leaves it open (one label: regression; whole-number
    labels: one class each; else several), but without writing it into the configuration.

    Args:
        logits_BC: the logits of either head, C labels.
        labels: (B,) class numbers, (B,) or (B, C) numbers for regression, (B, C) zeros and ones for several labels.
        config: gives `problem_type`.
        num_items: labels in the whole accumulated batch, or `None` for a plain mean.
    """
    labels = labels.to(logits_BC.device)
    if config.problem_type == "single_label_classification" or (
        config.problem_type is None and logits_BC.shape[-1] > 1 and labels.dtype in (torch.int32, torch.int64)
    ):
        return fixed_cross_entropy(logits_BC.float(), labels.view(-1), num_items)
    regression = config.problem_type == "regression" or (config.problem_type is None and logits_BC.shape[-1] == 1)
    loss = F.mse_loss if regression else F.binary_cross_entropy_with_logits
    targets_BC = labels.view(logits_BC.shape).float()
    if num_items is None:
        return loss(logits_BC.float(), targets_BC)
    return loss(logits_BC.float(), targets_BC, reduction="sum") / num_items


def pool_last(hidden_BTD: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    """Take each row's last real token, (B, D), whichever side the padding is on; without a mask, the last position."""
    if attention_mask_BT is None:
        return hidden_BTD[:, -1]
    attention_mask_BT = attention_mask_BT[:, -hidden_BTD.shape[1] :]  # with a cache the mask covers what is cached, too
    positions_T = torch.arange(attention_mask_BT.shape[-1], device=attention_mask_BT.device)
    last_B = (attention_mask_BT.bool() * positions_T).argmax(dim=-1)
    return hidden_BTD[torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device), last_B.to(hidden_BTD.device)]
