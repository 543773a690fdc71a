"""From hidden states to logits and losses: what each task does with the base's last state and the shadow's first."""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch, losses
from shadowpeft.config import ResolvedConfig
from shadowpeft.decoder import sharded
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.losses.frozen_head import Head
from shadowpeft.model.outputs import ShadowedCausalLMOutput, ShadowedClassifierOutput
from shadowpeft.shadow.adapter import Adapter


class Targets(NamedTuple):
    """What the losses are measured against: `labels` or `shift_labels`, and the count they are normalised by."""

    labels: Tensor | None
    shift_labels: Tensor | None
    num_items: Tensor | None

    @property
    def given(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None or self.shift_labels is not None


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
    """Apply the base's head to both states; with labels, L = CE(head(norm(h^(L))), y) + lambda * CE(head(s^(0)), y) (eq. 8, 9).

    With the setting `shadow_distil` part of the shadow's loss is its divergence from the attached answer (`_joint`).

    Args:
        base: owns the head that both states share.
        adapter: gives lambda and `shadow_distil`.
        h_BTD: the base's last hidden state, after its final norm.
        s_BTD: the first shadow state s^(0).
        targets: the labels, if any.
        logits_to_keep: how many last positions, or which positions, get logits.
        keep_shadow_logits: give back head(s^(0)) as well.
        skip_logits: give back the losses alone. Unless the head is more than a frozen linear layer, the logits are never held.

    Raises:
        ConfigError: `skip_logits` leaves nothing to compute.
    """
    if skip_logits and not targets.given:
        raise ConfigError(
            "skip_logits=True leaves nothing to compute without labels; pass labels, or skip_logits=False"
        )
    keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    h_BTD, s_BTD = h_BTD[:, keep], s_BTD[:, keep]
    head = arch.head_of(base)
    lean = skip_logits and (arch.has_plain_frozen_head(base) or sharded.is_frozen_linear(head))
    logits_BTV = None if lean else arch.logits(base, h_BTD)
    shadow_BTV = arch.logits(base, s_BTD) if keep_shadow_logits or (targets.given and not lean) else None
    joint: dict[str, Tensor | None] = {}
    distils = adapter.settings.shadow_distil > 0
    if lean:
        sweep = partial(_lean_losses, h_BTD, s_BTD, head, arch.softcap_of(base), targets, distils)
        joint = _joint(adapter.settings, *sharded.with_whole(head, sweep))
    elif targets.given:
        assert logits_BTV is not None
        assert shadow_BTV is not None
        own, shadow_loss = (losses.next_token_loss(x_BTV, *targets) for x_BTV in (logits_BTV, shadow_BTV))
        distil_loss = losses.next_token_divergence(logits_BTV, shadow_BTV, *targets) if distils else None
        joint = _joint(adapter.settings, own, shadow_loss, distil_loss)
    return ShadowedCausalLMOutput(
        logits=None if skip_logits else logits_BTV,
        shadow_logits=shadow_BTV if keep_shadow_logits else None,
        **joint,  # type: ignore[arg-type]
    )


def _lean_losses(
    h_BTD: Tensor, s_BTD: Tensor, head: nn.Linear, softcap: float | None, targets: Targets, distils: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute both heads' losses and, if wanted, how far the shadow's answer is from the attached one."""
    frozen = Head(head.weight, head.bias, softcap)
    own, shadow_loss = losses.frozen_head_losses((h_BTD, s_BTD), frozen, *targets)
    return (
        own,
        shadow_loss,
        losses.frozen_head_divergence(h_BTD, s_BTD, frozen, *targets) if distils else None,
    )


def _joint(
    settings: ResolvedConfig, own: Tensor, shadow_loss: Tensor, distil_loss: Tensor | None
) -> dict[str, Tensor | None]:
    """Compute L = own + lambda * [(1 - w) * shadow_loss + w * distil_loss], w the setting `shadow_distil`; all losses of the output.

    With w = 0 there is no `distil_loss`; with w = 1 `shadow_loss` is told and not learnt from, so its graph is let go.
    """
    if distil_loss is None:
        learnt = shadow_loss
    elif settings.shadow_distil == 1:
        learnt, shadow_loss = distil_loss, shadow_loss.detach()
    else:
        learnt = (1 - settings.shadow_distil) * shadow_loss + settings.shadow_distil * distil_loss
    return {
        "loss": own + settings.shadow_loss_weight * learnt,
        "shadow_loss": shadow_loss,
        "distil_loss": distil_loss,
    }


def padding_mask(
    config: PretrainedConfig, input_ids: Tensor | None, attention_mask: Tensor | None
) -> Tensor | None:
    """Tell tokens from padding by the mask, else by the padding token, as transformers' classifiers do; `None` where there is neither.

    Raises:
        UserError: nothing tells where each of several rows ends.
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        attention_mask = None  # says which token sees which, not which is padding
    if attention_mask is None and input_ids is not None and config.pad_token_id is not None:
        return input_ids != config.pad_token_id
    if attention_mask is None and input_ids is not None and len(input_ids) > 1:
        raise UserError(
            "a batch of several rows needs attention_mask, or a pad_token_id in the base's config, to find each row's end"
        )
    return attention_mask


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
        adapter: gives the heads, lambda and `shadow_distil`.
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
    shadow_BC = (
        adapter.shadow_score(losses.pool_last(s_BTD, mask_BT)) if trains or keep_shadow_logits else None
    )
    joint: dict[str, Tensor | None] = {}
    if targets.labels is not None and shadow_BC is not None:
        measured = targets.labels, config, targets.num_items
        shadow_loss, own = (losses.classification_loss(x_BC, *measured) for x_BC in (shadow_BC, logits_BC))
        distils = adapter.settings.shadow_distil > 0
        distil_loss = losses.classification_divergence(logits_BC, shadow_BC, *measured) if distils else None
        joint = _joint(adapter.settings, own, shadow_loss, distil_loss)
    return ShadowedClassifierOutput(
        logits=logits_BC,
        shadow_logits=shadow_BC if keep_shadow_logits else None,
        **joint,  # type: ignore[arg-type]
    )
