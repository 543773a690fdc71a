"""The losses of both heads, summed as eq. 9 says and normalised as the Trainer asks."""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss, fixed_cross_entropy

Count = Tensor | None


def next_token_loss(logits_BTV: Tensor, labels_BT: Tensor | None, num_items: Count, shift_labels: Tensor | None = None) -> Tensor:
    """Cross-entropy of the next token: mean over the labelled tokens, or their sum over `num_items` under accumulation.

    Args:
        logits_BTV: the logits of either head.
        labels_BT: token ids, -100 where no loss is wanted; shifted here.
        num_items: labelled tokens in the whole accumulated batch (`num_items_in_batch` of the Trainer), or `None`.
        shift_labels: labels already shifted, as sequence parallelism passes them.
    """
    return ForCausalLMLoss(logits_BTV, labels_BT, logits_BTV.shape[-1], num_items_in_batch=num_items, shift_labels=shift_labels)


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
