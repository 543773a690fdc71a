"""The parts of a loaded model: decoder, blocks, head, embeddings."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from shadowpeft.arch.families import family_of, task_of


def decoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the module that loops over the blocks."""
    decoder = model.get_submodule(family_of(model).decoder)
    assert isinstance(decoder, PreTrainedModel)
    return decoder


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the blocks in order."""
    blocks = decoder_of(model).get_submodule(family_of(model).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def head_of(model: PreTrainedModel) -> nn.Linear:
    """Return the linear head: `lm_head` of a causal language model, `score` of a classifier."""
    head = model.get_submodule("lm_head" if task_of(model) == "causal-lm" else "score")
    assert isinstance(head, nn.Linear)
    return head


def token_embedding_of(model: PreTrainedModel) -> nn.Embedding:
    """Return the table of token embeddings."""
    table = decoder_of(model).get_submodule(family_of(model).embeddings[0])
    assert isinstance(table, nn.Embedding)
    return table


def softcap_of(model: PreTrainedModel) -> float | None:
    """Return the soft cap of the logits, `None` where there is none."""
    if not family_of(model).softcaps:
        return None
    return model.config.final_logit_softcapping


def logits(model: PreTrainedModel, hidden_BTD: Tensor) -> Tensor:
    """Compute the logits as the family does: the linear head, then the soft cap where there is one."""
    logits_BTV, cap = head_of(model)(hidden_BTD), softcap_of(model)
    if cap is None:
        return logits_BTV
    return cap * (logits_BTV / cap).tanh()


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
