"""The parts of a loaded model: decoder, blocks, head, embeddings."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft.arch.family import Family
from shadowpeft.arch.lookup import family_of, family_of_config, task_of
from shadowpeft.errors import UnsupportedModelError


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that loops over the blocks."""
    return _decoder(model, family_of(model))


def _decoder(model: PreTrainedModel, family: Family) -> PreTrainedModel:
    # The row is given: to find it takes the host longer than the rest, and this is asked for every token.
    decoder = model.get_submodule(family.decoder)
    assert isinstance(decoder, PreTrainedModel)
    return decoder


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks in order."""
    family = family_of(model)
    blocks = _decoder(model, family).get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def set_implementations(
    model: PreTrainedModel, attention: Any = None, experts: Any = None, **options: Any
) -> None:
    """Choose how a model computes attention and mixtures of experts; `None` leaves it as it is.

    Args:
        model: a model whose decoder may have a configuration of its own, as that of a multimodal model has.
        attention: as transformers' `set_attn_implementation` takes it.
        experts: as transformers' `set_experts_implementation` takes it.
        **options: of the former.
    """
    # transformers before 5.23 finds no model of the same kind inside another.
    for part in (model, decoder_of(model)):
        if attention is not None:
            part.set_attn_implementation(attention, **options)
        if experts is not None:
            part.set_experts_implementation(experts)


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the linear head: `lm_head` of a causal language model, `score` of a classifier.

    Raises:
        UnsupportedModelError: it has been replaced by a module that is no linear layer of torch's.
    """
    name = "lm_head" if task_of(model) == "causal-lm" else "score"
    head = model.get_submodule(name)
    # torch.ao's quantised layers are another class, whose `weight` is a method.
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(
            f"the base's head must be an nn.Linear, and {name} is a {type(head).__module__}."
            f"{type(head).__name__}; leave {name} out of the quantisation"
        )
    return head


def token_embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """Return the table of token embeddings."""
    family = family_of(model)
    table = _decoder(model, family).get_submodule(family.embeddings[0])
    assert isinstance(table, nn.Embedding)
    return table


def device_map_of(model: PreTrainedModel) -> dict[str, int | str | torch.device] | None:
    """Return where accelerate keeps each part of a model, `None` if it has not been spread."""
    return getattr(model, "hf_device_map", None)


def is_packed(weight: Tensor) -> bool:
    """Return whether a weight is of a tensor class with a layout of its own, such as torchao's.

    It says that it is a float of the whole matrix's size, and cannot be indexed or copied like one.
    """
    return is_traceable_wrapper_subclass(weight.data) and not isinstance(weight.data, DTensor)


def gradient_stop(model: PreTrainedModel) -> str | None:
    """Return the kind of a quantised layer through which no gradient passes, `None` if there is none.

    Layers of torch.ao's and one with a weight of torchao's are looked at. Other libraries' layers pass
    gradients on.
    """
    for module in (*blocks_of(model)[0].modules(), head_of(model)):
        kind = type(module)
        if kind.__module__.startswith("torch.ao.nn.quantized"):
            return f"{kind.__module__}.{kind.__name__}"
        if isinstance(module, nn.Linear) and is_packed(module.weight):
            packed = type(module.weight.data)
            if not _passes_gradients(module, token_embedding_of(model)):
                return f"{packed.__module__}.{packed.__name__}"
            return None
    return None


def _passes_gradients(layer: nn.Linear, table: nn.Embedding) -> bool:
    x_ID = torch.zeros(1, layer.in_features, dtype=table.weight.dtype, device=table.weight.device)
    with torch.enable_grad():
        return layer(x_ID.requires_grad_()).requires_grad


def softcap_of(model: PreTrainedModel) -> float | None:
    """Return the soft cap of the logits, `None` where there is none."""
    if not family_of(model).softcaps:
        return None
    return model.config.final_logit_softcapping


def logit_settings(model: PreTrainedModel, family: Family) -> dict[str, float | None]:
    """Return the fields with which a model of `family` treats its logits as another model does.

    Args:
        model: the other one, of the same family or one that does nothing to its logits.
        family: whose fields they are.
    """
    if family_of(model) is family:
        return {field: getattr(model.config, field) for field in family.logit_fields()}
    cap = "final_logit_softcapping"
    return {field: None if field == cap else 1.0 for field in family.logit_fields()}


def logit_factor(model: PreTrainedModel) -> float:
    """Return the number that a language model multiplies the output of its linear head with."""
    if task_of(model) != "causal-lm":
        return 1.0
    return family_of(model).logit_factor(model.config)


def logits(model: PreTrainedModel, hidden_BTD: Tensor, head: nn.Linear | None = None) -> Tensor:
    """Compute the logits as the family does: the linear head, then its factor or its soft cap, if any.

    Args:
        model: the language model.
        hidden_BTD: what its head reads.
        head: a head in the place of its own, with as many rows as logits are wanted.
    """
    logits_BTV = (head_of(model) if head is None else head)(hidden_BTD)
    family = family_of(model)
    cap = softcap_of(model) if family.softcaps else None
    # One after the other, as the model's own code rounds them.
    if family.multiplies_logits is not None:
        logits_BTV = logits_BTV * getattr(model.config, family.multiplies_logits)
    if family.divides_logits is not None:
        logits_BTV = logits_BTV / getattr(model.config, family.divides_logits)
    if cap is None:
        return logits_BTV
    return cap * (logits_BTV / cap).tanh()


def routers_of(decoder: PreTrainedModel, family: Family) -> list[nn.Module]:
    """Return the parts of a shadow of one expert that choose experts, and so can learn nothing."""
    if family.router is None:
        return []
    blocks = decoder.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return [block.get_submodule(family.router) for block in blocks]


def attributes_of(block: nn.Module, config: PretrainedConfig) -> dict[str, Any]:
    """Return what a decoder's loop reads of a block, so that a wrapper of the block has it, too.

    Args:
        block: the block.
        config: the decoder's configuration.
    """
    return {name: getattr(block, name) for name in family_of_config(config).block_attributes}


def tables_of(decoder: PreTrainedModel, family: Family) -> list[nn.Module]:
    """Return the tables with a row for each token that a decoder has beside its embeddings."""
    parts = dict(decoder.named_children())
    return [parts[name] for name in family.tables if name in parts]


def has_plain_frozen_head(model: PreTrainedModel) -> bool:
    """Return whether the head is not trained, quantised, sharded, offloaded or hooked."""
    head = head_of(model)
    weight, bias = head.weight, head.bias
    return (
        type(head) is nn.Linear
        and type(weight) is nn.Parameter
        and weight.shape == (head.out_features, head.in_features)
        and not weight.is_meta
        and not (weight.requires_grad or (bias is not None and bias.requires_grad))
        # accelerate sets a `forward` on the instances of the modules that it offloads or dispatches.
        and not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))
    )
