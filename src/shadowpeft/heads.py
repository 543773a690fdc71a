"""From hidden states to logits and losses: what each task does with the base's last state and the shadow's first."""

from typing import NamedTuple

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch, losses
from shadowpeft.adapter import Adapter
from shadowpeft.outputs import ShadowedCausalLMOutput, ShadowedClassifierOutput


class Targets(NamedTuple):
    """What the losses are measured against: `labels` or `shift_labels`, and the count they are normalised by."""

    labels: Tensor | None
    shift_labels: Tensor | None
    num_items: Tensor | None


def language_output(
    base: PreTrainedModel,
    adapter: Adapter,
    h_BTD: Tensor,
    s_BTD: Tensor,
    targets: Targets,
    logits_to_keep: int | Tensor = 0,
    keep_shadow_logits: bool = False,
) -> ShadowedCausalLMOutput:
    """Apply the base's head to both states; with labels, L = CE(head(norm(h^(L))), y) + lambda * CE(head(s^(0)), y) (eq. 8, 9).

    Args:
        base: owns the frozen head that both states share.
        adapter: gives lambda.
        h_BTD: the base's last hidden state, after its final norm.
        s_BTD: the first shadow state s^(0).
        targets: the labels, if any.
        logits_to_keep: how many last positions, or which positions, get logits.
        keep_shadow_logits: give back head(s^(0)) as well.
    """
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    trains = targets.labels is not None or targets.shift_labels is not None
    logits_BTV = arch.logits(base, h_BTD[:, keep])
    shadow_BTV = arch.logits(base, s_BTD[:, keep]) if trains or keep_shadow_logits else None
    result = ShadowedCausalLMOutput(logits=logits_BTV, shadow_logits=shadow_BTV if keep_shadow_logits else None)
    if trains and shadow_BTV is not None:
        result.shadow_loss = losses.next_token_loss(shadow_BTV, targets.labels, targets.num_items, targets.shift_labels)
        own = losses.next_token_loss(logits_BTV, targets.labels, targets.num_items, targets.shift_labels)
        result.loss = own + adapter.settings.shadow_loss_weight * result.shadow_loss
    return result


def classifier_output(
    config: PretrainedConfig,
    adapter: Adapter,
    h_BTD: Tensor,
    s_BTD: Tensor,
    targets: Targets,
    mask_BT: Tensor | None,
    keep_shadow_logits: bool = False,
) -> ShadowedClassifierOutput:
    """Pool both states at the last real token and apply the adapter's two heads, both trained (eq. 8 and 9).

    Args:
        config: gives `problem_type`.
        adapter: gives the heads and lambda.
        h_BTD: the base's last hidden state.
        s_BTD: the first shadow state s^(0).
        targets: the labels, if any.
        mask_BT: nonzero where there is a token, whichever side the padding is on.
        keep_shadow_logits: give back the shadow head's logits as well.
    """
    assert adapter.score is not None
    assert adapter.shadow_score is not None
    trains = targets.labels is not None
    logits_BC = adapter.score(losses.pool_last(h_BTD, mask_BT))
    both = adapter.settings.variant == "normed"
    shadow_BC = adapter.shadow_score(losses.pool_last(s_BTD, mask_BT)) if both or trains or keep_shadow_logits else None
    if both and shadow_BC is not None:
        logits_BC = logits_BC + shadow_BC
    result = ShadowedClassifierOutput(logits=logits_BC, shadow_logits=shadow_BC if keep_shadow_logits else None)
    if targets.labels is not None and shadow_BC is not None:
        result.shadow_loss = losses.classification_loss(shadow_BC, targets.labels, config, targets.num_items)
        own = losses.classification_loss(logits_BC, targets.labels, config, targets.num_items)
        result.loss = own + adapter.settings.shadow_loss_weight * result.shadow_loss
    return result
