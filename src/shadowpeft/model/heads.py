"""From hidden states to logits and losses, for each task."""

from functools import partial
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch, losses
from shadowpeft.config import ResolvedConfig
from shadowpeft.decoder import sharded
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.losses.frozen_head import Head
from shadowpeft.model.outputs import ShadowedCausalLMOutput, ShadowedClassifierOutput
from shadowpeft.shadow.adapter import Adapter


class Targets(NamedTuple):
    """What the losses are computed against: labels, and the count that divides the sum."""

    labels: Tensor | None
    shift_labels: Tensor | None
    num_items: Tensor | None

    @property
    def given(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None or self.shift_labels is not None


class _Losses(TypedDict, total=False):
    """The losses of an output, by their names in it; empty without labels."""

    loss: Tensor
    attached_loss: Tensor
    shadow_loss: Tensor
    distil_loss: Tensor | None


def language_output(
    base: PreTrainedModel,
    adapter: Adapter,
    h_BTD: Tensor,
    s_BTD: Tensor,
    targets: Targets,
    logits_to_keep: int | Tensor = 0,
    keep_shadow_logits: bool = False,
    skip_logits: bool = False,
) -> ShadowedCausalLMOutput:
    """Compute logits and, with labels, L = CE(head(norm(h^(L))), y) + lambda * CE(head(s^(0)), y) (eq. 8, 9).

    With the setting `shadow_distil` a part of the shadow's loss is its divergence from the attached answer
    (`_joint`).

    Args:
        base: owns the head that both states share.
        adapter: has lambda and `shadow_distil`.
        h_BTD: the base's last hidden state, after its final norm.
        s_BTD: the first shadow state s^(0).
        targets: the labels, if any.
        logits_to_keep: how many last positions, or which positions, get logits.
        keep_shadow_logits: return head(s^(0)) as well.
        skip_logits: return the losses alone. Unless the head is more than a frozen linear layer, no logits of
            the whole batch are held in memory.

    Raises:
        ConfigError: `skip_logits` leaves nothing to compute.
    """
    if skip_logits and not targets.given:
        raise ConfigError(
            "skip_logits=True leaves nothing to compute without labels; pass labels, or skip_logits=False"
        )
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    h_BTD, s_BTD = h_BTD[:, keep], s_BTD[:, keep]
    if skip_logits and (arch.has_plain_frozen_head(base) or sharded.is_frozen_linear(arch.head_of(base))):
        return _language_losses(
            base, adapter, h_BTD, s_BTD=s_BTD, targets=targets, keep_shadow_logits=keep_shadow_logits
        )
    logits_BTV, shadow_BTV = arch.logits(base, h_BTD), None
    if keep_shadow_logits or targets.given:
        shadow_BTV = arch.logits(base, s_BTD)
    joint: _Losses = {}
    if targets.given:
        assert shadow_BTV is not None
        attached, shadow_loss = (
            losses.next_token_loss(x_BTV, *targets) for x_BTV in (logits_BTV, shadow_BTV)
        )
        distil_loss = None
        if adapter.settings.shadow_distil > 0:
            kind = adapter.settings.distil_loss
            distil_loss = losses.next_token_divergence(logits_BTV, shadow_BTV, *targets, kind)
        joint = _joint(adapter.settings, attached, shadow_loss, distil_loss)
    if not keep_shadow_logits:
        shadow_BTV = None
    return ShadowedCausalLMOutput(
        logits=None if skip_logits else logits_BTV, shadow_logits=shadow_BTV, **joint
    )


def _language_losses(
    base: PreTrainedModel,
    adapter: Adapter,
    h_BTD: Tensor,
    s_BTD: Tensor,
    targets: Targets,
    keep_shadow_logits: bool,
) -> ShadowedCausalLMOutput:
    """Compute the losses of a plain frozen head without the logits of the whole batch."""
    head = arch.head_of(base)
    shadow_BTV = arch.logits(base, s_BTD) if keep_shadow_logits else None
    compute = partial(_frozen_head_losses, (h_BTD, s_BTD), base, targets=targets, settings=adapter.settings)
    # The losses read the head's weights without calling the head, so FSDP must be told to gather them.
    joint = _joint(adapter.settings, *sharded.with_whole(head, compute))
    return ShadowedCausalLMOutput(shadow_logits=shadow_BTV, **joint)


def _frozen_head_losses(
    states: tuple[Tensor, Tensor], base: PreTrainedModel, targets: Targets, settings: ResolvedConfig
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the losses of both states and, if wanted, the shadow's divergence."""
    frozen = Head.of(base)
    attached, shadow_loss = losses.frozen_head_losses(states, frozen, *targets)
    if settings.shadow_distil == 0:
        return attached, shadow_loss, None
    distil_loss = losses.frozen_head_divergence(*states, frozen, *targets, settings.distil_loss)
    return attached, shadow_loss, distil_loss


def _joint(
    settings: ResolvedConfig, attached: Tensor, shadow_loss: Tensor, distil_loss: Tensor | None
) -> _Losses:
    """Compute L = attached + lambda * [(1 - w) * shadow_loss + w * distil_loss].

    w is the setting `shadow_distil`. With w = 0 there is no `distil_loss`. With w = 1 `shadow_loss` is only
    reported, and its graph is freed.
    """
    if distil_loss is None:
        learnt = shadow_loss
    elif settings.shadow_distil == 1:
        learnt, shadow_loss = distil_loss, shadow_loss.detach()
    else:
        learnt = (1 - settings.shadow_distil) * shadow_loss + settings.shadow_distil * distil_loss
    return {
        "loss": attached + settings.shadow_loss_weight * learnt,
        "shadow_loss": shadow_loss,
        "distil_loss": distil_loss,
        "attached_loss": attached,
    }


def ends_of_rows(config: PretrainedConfig, input_ids: Tensor | None, rows: int) -> Tensor | int:
    """Return the position of the token that a classifier reads in each row, as transformers' classifiers do.

    It is the last one that is not the padding token, whatever the mask says, so that base, shadowed and
    detached model read the same token. It is the last position where there are no ids or no padding token.

    Args:
        config: has `pad_token_id`.
        input_ids: the ids of the rows, (B, T); `None` where embeddings were given.
        rows: how many rows there are.

    Raises:
        UserError: there are several rows and no padding token.
    """
    pad = config.pad_token_id
    if pad is None and rows > 1:
        raise UserError(
            "a classifier finds the end of each row by its padding token, and this one has none: set "
            "model.config.pad_token_id (and that of the base before attaching), or give one row at a time"
        )
    if pad is None or input_ids is None:
        return -1
    positions_T = torch.arange(input_ids.shape[1], device=input_ids.device)
    # The largest position where there is a token; 0 in a row of nothing but padding.
    return ((input_ids != pad) * positions_T).argmax(dim=-1)


def _pooled(hidden_BTD: Tensor, ends_B: Tensor | int) -> Tensor:
    """Return the state at the end of each row, (B, D)."""
    if isinstance(ends_B, int):
        return hidden_BTD[:, ends_B]
    rows_B = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
    return hidden_BTD[rows_B, ends_B.to(hidden_BTD.device)]


def classifier_output(
    config: PretrainedConfig,
    adapter: Adapter,
    h_BTD: Tensor,
    s_BTD: Tensor,
    targets: Targets,
    ends_B: Tensor | int,
    keep_shadow_logits: bool = False,
) -> ShadowedClassifierOutput:
    """Pool both states at the end of each row and apply the adapter's two heads, both trained (eq. 8 and 9).

    Args:
        config: has `problem_type`.
        adapter: has the heads, lambda and `shadow_distil`.
        h_BTD: the base's last hidden state.
        s_BTD: the first shadow state s^(0).
        targets: the labels, if any.
        ends_B: the position of the token that is read, in each row (`ends_of_rows`).
        keep_shadow_logits: return the logits of the shadow's head as well.
    """
    assert adapter.score is not None
    assert adapter.shadow_score is not None
    logits_BC, shadow_BC = adapter.score(_pooled(h_BTD, ends_B)), None
    if targets.labels is not None or keep_shadow_logits:
        shadow_BC = adapter.shadow_score(_pooled(s_BTD, ends_B))
    joint: _Losses = {}
    if targets.labels is not None:
        assert shadow_BC is not None
        measured = targets.labels, config, targets.num_items
        shadow_loss, attached = (
            losses.classification_loss(x_BC, *measured) for x_BC in (shadow_BC, logits_BC)
        )
        distil_loss = None
        if adapter.settings.shadow_distil > 0:
            distil_loss = losses.classification_divergence(logits_BC, shadow_BC, *measured)
        joint = _joint(adapter.settings, attached, shadow_loss, distil_loss)
    if not keep_shadow_logits:
        shadow_BC = None
    return ShadowedClassifierOutput(logits=logits_BC, shadow_logits=shadow_BC, **joint)
