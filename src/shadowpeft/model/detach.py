"""The detached model: what was trained, folded into a stock transformers checkpoint that needs neither the base nor this library."""

import copy

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.errors import UnsupportedModelError
from shadowpeft.shadow import Shadow
from shadowpeft.shadow.adapter import Adapter

# Rows of the head that are held in float32 at once while P is folded in, and columns read at once off a quantised head.
_BLOCK = 8192


@torch.no_grad()
def detached(base: PreTrainedModel, adapter: Adapter, settings: PretrainedConfig) -> PreTrainedModel:
    """Build the model `head(P(f_shadow(x)))` of a trained adapter. Arguments, result and errors as `detached_shadow`."""
    return detached_shadow(base, adapter.shadow, settings, adapter.dtype, adapter.shadow_score)


@torch.no_grad()
def detached_shadow(
    base: PreTrainedModel,
    shadow: Shadow,
    settings: PretrainedConfig,
    dtype: torch.dtype,
    score: nn.Linear | None = None,
) -> PreTrainedModel:
    """Build the model `head(P(f_shadow(x)))` as a stock model of the shadow's family, with weights of its own.

    Nothing stands between P and the head, so both fold into one matrix: W_head P. Where there is no P and the base ties its
    head to its embeddings, the detached model ties them too. What bends the logits afterwards, Gemma's soft cap, is the base's.

    Args:
        base: the model whose embeddings (implicit shadow) and head are copied.
        shadow: the shadow network.
        settings: gives the special tokens and labels, which may have been set after attaching.
        dtype: type of the weights.
        score: a classifier's head for the shadow; a language model's is the base's.

    Returns:
        A complete model on the base's device, in evaluation mode.

    Raises:
        UnsupportedModelError: the head's weights can neither be read nor asked for, so that nothing can be folded into them.
    """
    head = arch.head_of(base) if score is None else score
    table = arch.token_embedding_of(base).weight
    config = copy.deepcopy(shadow.backbone.config)
    config.tie_word_embeddings = shadow.borrows and shadow.projection is None and head.weight is table
    if shadow.family.softcaps:
        config.final_logit_softcapping = arch.softcap_of(base)  # an explicit shadow's own may be another
    config.id2label, config.label2id, config.problem_type = (
        settings.id2label,
        settings.label2id,
        settings.problem_type,
    )
    config.pad_token_id, config.bos_token_id, config.eos_token_id = (
        settings.pad_token_id,
        settings.bos_token_id,
        settings.eos_token_id,
    )
    config.name_or_path = ""  # it is not the base
    weight_VD = _weight_of(head, table)
    model = arch.build(config, arch.task_of(base))
    model.to(device=table.device, dtype=dtype)  # type: ignore[call-arg]
    arch.decoder_of(model).load_state_dict(_decoder_state(base, shadow), strict=True)
    _fold_head(weight_VD, head.bias, shadow.projection, arch.head_of(model))
    if score is None:
        model.generation_config = copy.deepcopy(base.generation_config)
    return model.eval()


def _decoder_state(base: PreTrainedModel, shadow: Shadow) -> dict[str, Tensor]:
    state = dict(shadow.backbone.state_dict())
    if shadow.borrows:
        for name in shadow.family.embeddings:
            module = arch.decoder_of(base).get_submodule(name)
            state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    return state


def _weight_of(head: nn.Linear, table_VD: Tensor) -> Tensor:
    """Return W of a head, (V, D). One that is quantised or offloaded, whatever its format, is asked for it: W e_i is column i.

    Raises:
        UnsupportedModelError: it does not answer.
    """
    if type(head) is nn.Linear and head.weight.is_floating_point() and head.weight.device.type != "meta":
        return head.weight
    try:
        parts_DV = []
        for rows in torch.arange(head.in_features, device=table_VD.device).split(_BLOCK):
            unit_RD = torch.zeros(len(rows), head.in_features, dtype=table_VD.dtype, device=table_VD.device)
            unit_RD[torch.arange(len(rows)), rows] = 1
            answer_RV = head(unit_RD)
            parts_DV.append(answer_RV if head.bias is None else answer_RV - head.bias)
        weight_VD = torch.cat(parts_DV).T
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise _unfoldable(head, " ".join(str(error).split())) from error
    if weight_VD.shape != (head.out_features, head.in_features) or not weight_VD.isfinite().all():
        raise _unfoldable(head, "what it computes is not a finite matrix")
    return weight_VD


def _unfoldable(head: nn.Linear, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the detached model needs the base's head as plain numbers, and this {type(head).__name__} does not give them ({why}): load the "
        "base with its head left out of the quantisation (llm_int8_skip_modules=['lm_head']), or unquantised"
    )


def _fold_head(
    weight_VD: Tensor, bias_V: Tensor | None, projection: nn.Linear | None, target: nn.Linear
) -> None:
    """Write W P and the bias into the new head; one whose family has a bias where the base's head has none gets zeros."""
    if projection is None:
        target.weight.copy_(weight_VD)
    else:
        for rows_RD, folded_RS in zip(weight_VD.split(_BLOCK), target.weight.split(_BLOCK), strict=True):
            folded_RS.copy_(rows_RD.float() @ projection.weight.float())
    if target.bias is not None:
        target.bias.zero_() if bias_V is None else target.bias.copy_(bias_V)
