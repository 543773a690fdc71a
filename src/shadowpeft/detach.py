"""The detached model: what was trained, folded into a stock transformers checkpoint that needs neither the base nor this library."""

import copy

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft import arch
from shadowpeft.adapter import Adapter
from shadowpeft.errors import UnsupportedModelError


@torch.no_grad()
def detached(base: PreTrainedModel, adapter: Adapter, settings: PretrainedConfig) -> PreTrainedModel:
    """Build the model `head(P(f_shadow(x)))` as a stock model of the shadow's family, with weights of its own.

    Nothing stands between P and the head, so both fold into one matrix: W_head P. Where there is no P and the base ties its
    head to its embeddings, the detached model ties them too.

    Args:
        base: the model whose embeddings (implicit shadow) and head are copied.
        adapter: the trained adapter.
        settings: gives the special tokens and labels, which may have been set after attaching.

    Returns:
        A complete model on the base's device and of the adapter's dtype, in evaluation mode.

    Raises:
        UnsupportedModelError: the head is quantised, so that nothing can be folded into it.
    """
    shadow = adapter.shadow
    head = arch.head_of(base) if adapter.shadow_score is None else adapter.shadow_score
    if not head.weight.is_floating_point():
        raise UnsupportedModelError(
            "the detached model needs the base's head as plain numbers, and it is quantised: load the base with it left out "
            "(llm_int8_skip_modules=['lm_head'], or the base unquantised)"
        )
    config = copy.deepcopy(shadow.backbone.config)
    table = arch.token_embedding_of(base).weight
    config.tie_word_embeddings = shadow.borrows and shadow.projection is None and head.weight is table
    config.id2label, config.label2id, config.problem_type = settings.id2label, settings.label2id, settings.problem_type
    config.pad_token_id, config.bos_token_id, config.eos_token_id = settings.pad_token_id, settings.bos_token_id, settings.eos_token_id
    config.name_or_path = ""  # it is not the base
    model = arch.build(config, adapter.task)
    model.to(device=table.device, dtype=adapter.dtype)  # type: ignore[call-arg]
    arch.decoder_of(model).load_state_dict(_decoder_state(base, adapter), strict=True)
    _fold_head(head, shadow.projection, arch.head_of(model))
    if adapter.task == "causal-lm":
        model.generation_config = copy.deepcopy(base.generation_config)
    return model.eval()


def _decoder_state(base: PreTrainedModel, adapter: Adapter) -> dict[str, Tensor]:
    state = dict(adapter.shadow.backbone.state_dict())
    if adapter.shadow.borrows:
        for name in adapter.shadow.family.embeddings:
            module = arch.decoder_of(base).get_submodule(name)
            state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    return state


def _fold_head(head: nn.Linear, projection: nn.Linear | None, target: nn.Linear) -> None:
    folded_VS = head.weight if projection is None else head.weight.float() @ projection.weight.float()
    target.weight.copy_(folded_VS)
    if head.bias is not None:
        target.bias.copy_(head.bias)
