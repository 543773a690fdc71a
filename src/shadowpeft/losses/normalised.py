"""The losses of both heads, of logits or of hidden states, normalised as the Trainer asks."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForCausalLMLoss, fixed_cross_entropy

from shadowpeft.config import DistilLoss
from shadowpeft.losses.divergence import divergence, divergences
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.linear_ce import IGNORED, token_losses
from shadowpeft.losses.overlap import lk_loss, lk_losses

Count = Tensor | None


def next_token_loss(
    logits_BTV: Tensor, labels_BT: Tensor | None, shift_labels: Tensor | None, num_items: Count
) -> Tensor:
    """Compute the cross-entropy of the next token.

    It is the mean over the labelled tokens, or under accumulation their sum divided by `num_items`.

    Args:
        logits_BTV: the logits of either head.
        labels_BT: token ids, -100 where no loss is wanted; shifted here.
        shift_labels: labels already shifted, as sequence parallelism passes them, in place of `labels_BT`.
        num_items: labelled tokens in the whole accumulated batch (`num_items_in_batch` of the Trainer), or
            `None`.
    """
    return ForCausalLMLoss(
        logits_BTV, labels_BT, logits_BTV.shape[-1], num_items_in_batch=num_items, shift_labels=shift_labels
    )


def frozen_head_losses(
    states_BTD: Sequence[Tensor],
    head: Head,
    labels_BT: Tensor | None,
    shift_labels: Tensor | None,
    num_items: Count,
) -> list[Tensor]:
    """Compute `next_token_loss` of several hidden states through one frozen head, in one sweep.

    No logits of a batch are held.

    Args:
        states_BTD: what the head reads, all of one shape.
        head: the frozen head; nothing else of the layer may count (`arch.has_plain_frozen_head`).
        labels_BT: this and what follows as in `next_token_loss`.
        shift_labels: labels already shifted.
        num_items: labelled tokens in the whole accumulated batch, or `None`.

    Returns:
        One loss for each state.
    """
    states_ND, targets_N, count = _labelled(
        states_BTD, head.weight_VD.device, labels_BT, shift_labels, num_items
    )
    losses = token_losses(torch.cat(states_ND), targets_N.repeat(len(states_ND)), head)
    return [loss_N.sum() / count for loss_N in losses.view(len(states_ND), len(targets_N))]


def frozen_head_divergence(
    h_BTD: Tensor,
    s_BTD: Tensor,
    head: Head,
    labels_BT: Tensor | None,
    shift_labels: Tensor | None,
    num_items: Count,
    kind: DistilLoss = "kl",
) -> Tensor:
    """Compute `next_token_divergence` of two hidden states through one frozen head, without the logits.

    Args:
        h_BTD: what the head reads for the attached answer; gets no gradient.
        s_BTD: what it reads for the shadow's.
        head: this and what follows as in `frozen_head_losses`.
        labels_BT: token ids.
        shift_labels: labels already shifted.
        num_items: labelled tokens in the whole accumulated batch, or `None`.
        kind: as in `next_token_divergence`.
    """
    states_BTD = (h_BTD.detach(), s_BTD)
    (h_ND, s_ND), targets_N, count = _labelled(
        states_BTD, head.weight_VD.device, labels_BT, shift_labels, num_items
    )
    losses_N = {"kl": divergences, "lk": lk_losses}[kind](s_ND, h_ND, head)
    return torch.where(targets_N != IGNORED, losses_N, 0).sum() / count


def next_token_divergence(
    logits_BTV: Tensor,
    shadow_BTV: Tensor,
    labels_BT: Tensor | None,
    shift_labels: Tensor | None,
    num_items: Count,
    kind: DistilLoss = "kl",
) -> Tensor:
    """Compute how far the shadow's answer q is from the attached answer p, of the next token.

    That is KL(p || q), or -log sum min(p, q), the LK loss (arXiv 2602.23881). It is taken over
    the tokens that `next_token_loss` counts, and normalised as there.

    Args:
        logits_BTV: the attached logits; they get no gradient.
        shadow_BTV: the shadow's.
        labels_BT: token ids, of which only counts which have one; this and what follows as in
            `next_token_loss`.
        shift_labels: labels already shifted.
        num_items: labelled tokens in the whole accumulated batch, or `None`.
        kind: which of the two losses.
    """
    both_BTV = (logits_BTV.detach(), shadow_BTV)
    (logits_NV, shadow_NV), targets_N, count = _labelled(
        both_BTV, shadow_BTV.device, labels_BT, shift_labels, num_items
    )
    return torch.where(targets_N != IGNORED, _divergences(logits_NV, shadow_NV, kind), 0).sum() / count


def _divergences(logits_NC: Tensor, shadow_NC: Tensor, kind: DistilLoss = "kl") -> Tensor:
    """Compute one of the losses of each row from both sides' logits, in float32 at least."""
    wide = torch.promote_types(shadow_NC.dtype, torch.float32)
    log_p_NC, log_q_NC = (F.log_softmax(x_NC, -1, dtype=wide) for x_NC in (logits_NC, shadow_NC))
    return {"kl": divergence, "lk": lk_loss}[kind](log_p_NC, log_q_NC)


def _labelled(
    states_BTX: Sequence[Tensor],
    device: torch.device,
    labels_BT: Tensor | None,
    shift_labels: Tensor | None,
    num_items: Count,
) -> tuple[list[Tensor], Tensor, Tensor | float]:
    """Return the labelled tokens' states, (N, X) each, their labels, (N,), and what a sum is divided by."""
    if shift_labels is None:
        assert labels_BT is not None
        shift_labels = F.pad(labels_BT, (0, 1), value=IGNORED)[..., 1:]
    targets_N = shift_labels.reshape(-1).to(device)
    states_NX = [state_BTX.flatten(0, 1) for state_BTX in states_BTX]
    count = _count(targets_N, num_items)
    # A prompt's tokens need no logits. How many are left is not known to a compiled graph, which sweeps all.
    if not torch.compiler.is_compiling():
        rows = (targets_N != IGNORED).nonzero()[:, 0]
        targets_N = targets_N[rows]
        states_NX = [state_NX.index_select(0, rows) for state_NX in states_NX]
    return states_NX, targets_N, count


def _count(targets_N: Tensor, num_items: Count) -> Tensor | float:
    """Return what a sum of losses is divided by."""
    if num_items is None:
        return (targets_N != IGNORED).sum()
    # The Trainer's count is on its own device; a user may give a number.
    if isinstance(num_items, Tensor):
        return num_items.to(targets_N.device)
    return num_items


def classification_loss(
    logits_BC: Tensor, labels: Tensor, config: PretrainedConfig, num_items: Count
) -> Tensor:
    """Compute the loss of a pooled classification head.

    By `config.problem_type` it is the squared error, the cross-entropy or the binary cross-entropy.

    The type is worked out as transformers does when the configuration leaves it open (one label: regression;
    whole-number labels: one class each; else several), but without writing it into the configuration.

    Args:
        logits_BC: the logits of either head, C labels.
        labels: (B,) class numbers, (B,) or (B, C) numbers for regression, (B, C) zeros and ones for several
            labels.
        config: gives `problem_type`.
        num_items: labels in the whole accumulated batch, or `None` for a plain mean.
    """
    problem, labels = _problem(logits_BC.shape[-1], labels, config), labels.to(logits_BC.device)
    if problem == "single_label_classification":
        return fixed_cross_entropy(logits_BC.float(), labels.view(-1), num_items)
    return _towards(labels.view(logits_BC.shape).float(), logits_BC.float(), problem, num_items)


def classification_divergence(
    logits_BC: Tensor, shadow_BC: Tensor, labels: Tensor, config: PretrainedConfig, num_items: Count
) -> Tensor:
    """Compute the loss of the shadow's pooled head against the attached answer.

    It is counted and normalised as `classification_loss`.

    KL(p || q) of the classes; of several labels the binary cross-entropy to the attached probabilities; of
    regression the squared error to the attached numbers.

    Args:
        logits_BC: the attached logits; they get no gradient.
        shadow_BC: the shadow's.
        labels: as in `classification_loss`; only their type counts, and which rows have a class.
        config: gives `problem_type`.
        num_items: labels in the whole accumulated batch, or `None`.
    """
    logits_BC = logits_BC.detach().to(shadow_BC.device)
    problem = _problem(shadow_BC.shape[-1], labels, config)
    if problem != "single_label_classification":
        answers_BC = logits_BC.float()
        if problem != "regression":
            answers_BC = answers_BC.sigmoid()
        return _towards(answers_BC, shadow_BC.float(), problem, num_items)
    classes_B = labels.to(shadow_BC.device).view(-1)
    losses_B = torch.where(classes_B != IGNORED, _divergences(logits_BC, shadow_BC), 0)
    return losses_B.sum() / _count(classes_B, num_items)


def _problem(width: int, labels: Tensor, config: PretrainedConfig) -> str:
    """Name the problem type, worked out as transformers does where the configuration leaves it open."""
    if config.problem_type is not None:
        return config.problem_type
    if width == 1:
        return "regression"
    if labels.dtype in (torch.int32, torch.int64):
        return "single_label_classification"
    return "multi_label_classification"


def _towards(targets_BC: Tensor, logits_BC: Tensor, problem: str, num_items: Count) -> Tensor:
    """Compute the squared error of regression, else the binary cross-entropy."""
    loss = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
    if num_items is None:
        return loss(logits_BC, targets_BC)
    return loss(logits_BC, targets_BC, reduction="sum") / num_items
