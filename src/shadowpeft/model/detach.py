"""The detached model: the trained shadow as a stock transformers model of its own."""

import copy

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.decoder.casting import cast, stock_class
from shadowpeft.decoder.offloaded import in_memory
from shadowpeft.errors import UnsupportedModelError
from shadowpeft.shadow import Shadow
from shadowpeft.shadow.adapter import Adapter

# Rows of the head that are in float32 at once while P is multiplied in, and columns read at once from a
# quantised head.
_BLOCK = 8192


@torch.no_grad()
def detached(base: PreTrainedModel, adapter: Adapter, settings: PretrainedConfig) -> PreTrainedModel:
    """Build the detached model of an adapter in the base's type; the rest as `detached_shadow`."""
    dtype = arch.token_embedding_of(base).weight.dtype
    return detached_shadow(base, adapter.shadow, settings, dtype=dtype, score=adapter.shadow_score)


@torch.no_grad()
def detached_shadow(
    base: PreTrainedModel,
    shadow: Shadow,
    settings: PretrainedConfig,
    dtype: torch.dtype,
    score: nn.Linear | None = None,
) -> PreTrainedModel:
    """Build `head(P(f_shadow(x)))` as a stock model of the shadow's family, with weights of its own.

    No function stands between P and the head, so both become one matrix: W_head P. Where there is no P and
    the base ties its head to its embeddings, the detached model ties them too. What follows the head, such as
    Gemma's soft cap of the logits, is the base's.

    Args:
        base: the model whose embeddings (implicit shadow) and head are copied.
        shadow: the shadow network.
        settings: has the special tokens and labels, which may have been set after attaching.
        dtype: type of the weights.
        score: a classifier's head for the shadow; a language model's is the base's.

    Returns:
        A complete model on the base's device, in evaluation mode.

    Raises:
        UnsupportedModelError: the weights of the head cannot be read.
        UserError: weights are on the meta device, and nothing knows their values.
    """
    decoder = arch.decoder_of(base)
    read = [shadow, *(decoder.get_submodule(name) for name in arch.family_of(base).embeddings)]
    if score is not None:
        read.append(score)
    with in_memory(read):
        return _detached_shadow(base, shadow, settings, dtype, score)


def _detached_shadow(
    base: PreTrainedModel,
    shadow: Shadow,
    settings: PretrainedConfig,
    dtype: torch.dtype,
    score: nn.Linear | None,
) -> PreTrainedModel:
    head = arch.head_of(base) if score is None else score
    table = arch.token_embedding_of(base).weight
    is_tied = shadow.borrows and shadow.projection is None and head.weight is table
    model = arch.build(_config_of(base, shadow, settings, is_tied), arch.task_of(base))
    if any(weight.is_meta for weight in (*shadow.parameters(), *model.parameters())):
        raise UnsupportedModelError(
            "the detached model would have no weights: attach to a base in memory, and detach outside of "
            "torch.device('meta') and init_empty_weights()"
        )
    cast(model, table.device, dtype, stock=model)
    arch.decoder_of(model).load_state_dict(_decoder_state(base, shadow), strict=True)
    _fold_head(_weight_of(head, table), head.bias, shadow.projection, arch.head_of(model))
    if score is None:
        model.generation_config = copy.deepcopy(base.generation_config)
    return model.eval()


def _config_of(
    base: PreTrainedModel, shadow: Shadow, settings: PretrainedConfig, is_tied: bool
) -> PretrainedConfig:
    """Return the shadow's configuration, with the head, labels and special tokens of the whole model."""
    config = copy.deepcopy(shadow.backbone.config)
    config.tie_word_embeddings = is_tied
    # An explicit shadow's own values of these may be others.
    for field, value in arch.logit_settings(base, shadow.family).items():
        setattr(config, field, value)
    config.id2label, config.label2id = settings.id2label, settings.label2id
    config.problem_type = settings.problem_type
    config.pad_token_id, config.bos_token_id = settings.pad_token_id, settings.bos_token_id
    config.eos_token_id = settings.eos_token_id
    # The name is the base's, and the detached model is not the base.
    config.name_or_path = ""
    config.architectures = [shadow.family.class_name(arch.task_of(base))]
    return config


def _decoder_state(base: PreTrainedModel, shadow: Shadow) -> dict[str, Tensor]:
    """Return the weights of the shadow's decoder, for an implicit shadow with the base's embeddings."""
    state = dict(shadow.backbone.state_dict())
    if shadow.borrows:
        for name in shadow.family.embeddings:
            module = arch.decoder_of(base).get_submodule(name)
            state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    return state


def _weight_of(head: nn.Linear, table_VD: Tensor) -> Tensor:
    """Return the weight matrix of a head, (V, D).

    The matrix of a quantised or offloaded head, whatever its format, is computed by the head: W e_i is column
    i.

    Args:
        head: the linear head.
        table_VD: the base's embeddings, whose type and device the head computes in.

    Raises:
        UnsupportedModelError: the head does not compute it.
    """
    is_plain = stock_class(head) is nn.Linear and not arch.is_packed(head.weight)
    if is_plain and head.weight.is_floating_point() and not head.weight.is_meta:
        return head.weight
    try:
        parts_DV = []
        for rows in torch.arange(head.in_features, device=table_VD.device).split(_BLOCK):
            unit_RD = torch.zeros(len(rows), head.in_features, dtype=table_VD.dtype, device=table_VD.device)
            unit_RD[torch.arange(len(rows)), rows] = 1
            column_RV = head(unit_RD)
            if head.bias is not None:
                column_RV = column_RV - head.bias
            parts_DV.append(column_RV)
        weight_VD = torch.cat(parts_DV).T
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise _unfoldable(head, " ".join(str(error).split())) from error
    if weight_VD.shape != (head.out_features, head.in_features) or not weight_VD.isfinite().all():
        raise _unfoldable(head, "what it computes is not a finite matrix")
    return weight_VD


def _unfoldable(head: nn.Linear, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the detached model needs the base's head as plain numbers, and this {type(head).__name__} does not "
        f"give them ({why}): load the base with its head left out of the quantisation "
        "(llm_int8_skip_modules=['lm_head']), or unquantised"
    )


def _fold_head(
    weight_VD: Tensor, bias_V: Tensor | None, projection: nn.Linear | None, target: nn.Linear
) -> None:
    """Write W P and the bias into the new head. Where only the new head has a bias, it is zero."""
    if projection is None:
        target.weight.copy_(weight_VD)
    else:
        for rows_RD, folded_RS in zip(weight_VD.split(_BLOCK), target.weight.split(_BLOCK), strict=True):
            folded_RS.copy_(rows_RD.float() @ projection.weight.float())
    if target.bias is not None:
        target.bias.zero_()
        if bias_V is not None:
            target.bias.copy_(bias_V)
