"""The norms of a block: the one that its attention reads through, those behind its layers, and what each computes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_accelerate_available

from shadowpeft.arch.families import Family, family_of
from shadowpeft.arch.modules import blocks_of
from shadowpeft.errors import UnsupportedModelError


def input_norm_of(block: nn.Module, family: Family) -> Callable[[Tensor], Tensor]:
    """Return the norm that a block's attention reads the stream through; the identity where there is none.

    Falcon's newer layout keeps one norm for the attention beside another for the MLP, under a name of its own. An OPT may put its norms
    behind the attention and the MLP.
    """
    if family.input_norm is None or (family.model_type == "opt" and not block.do_layer_norm_before):
        return _unchanged
    name = "ln_attn" if family.model_type == "falcon" and hasattr(block, "ln_attn") else family.input_norm
    return getattr(block, name)


def output_gains(model: PreTrainedModel) -> list[Tensor] | None:
    """Tell for each block how its attention and MLP share out what they write over the channels of the stream.

    c = sqrt(w_1^2 + w_2^2) / mean(sqrt(w_1^2 + w_2^2)), w_i the weights of the norms behind the two

    A norm's output has its weights for a size, whatever it normed. `None` for a family without such norms.

    Raises:
        UnsupportedModelError: the weights are on the meta device and nobody can tell them, where the caller does not build on it.
    """
    names = family_of(model).output_norms
    if not names:
        return None
    gains = []
    for block in blocks_of(model):
        first_D, second_D = (_rms_weight(block.get_submodule(name)) for name in names)
        size_D = torch.hypot(first_D, second_D)
        gains.append(size_D / size_D.mean())
    builds_on_meta = torch.get_default_device().type == "meta"  # as one does to count parameters
    if any(gains_D.is_meta for gains_D in gains) and not builds_on_meta:
        raise UnsupportedModelError(
            "the base's weights are on the meta device, which holds no values; load them first (from_pretrained does, and with "
            "device_map='auto' where memory is short), then attach"
        )
    return gains


def _rms_weight(norm: nn.Module) -> Tensor:
    if (
        norm.get_parameter("weight").is_meta and is_accelerate_available()
    ):  # perhaps offloaded: accelerate has the values
        from accelerate.utils import align_module_device

        context: AbstractContextManager[None] = align_module_device(norm)
    else:
        context = nullcontext()
    with (
        torch.device("cpu"),
        context,
    ):  # on no other device that the caller builds on: values that are read from disk are needed now
        parts = norm_parts(norm)
        assert parts is not None, f"{type(norm).__name__} is missing in _RMS_NORMS"
        assert parts.weight is not None
        wide = torch.promote_types(parts.weight.dtype, torch.float32)
        return parts.weight.detach().to(wide) + parts.offset


def _unchanged(h_BTD: Tensor) -> Tensor:
    return h_BTD


class NormParts(NamedTuple):
    """What a norm computes, for a kernel that folds it into a product.

    kind `rms`: h (weight + offset) / sqrt(mean(h^2) + eps); `layer`: torch's LayerNorm; `none`: h itself.
    """

    kind: Literal["none", "rms", "layer"]
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0


# The RMS norms of the table's families: the attribute that holds epsilon, and what is added to the weight.
_RMS_NORMS = {
    **{
        f"{name}RMSNorm": ("variance_epsilon", 0.0)
        for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Qwen3Moe", "Phi3", "Olmo2")
    },
    **{f"{name}RMSNorm": ("eps", 1.0) for name in ("Gemma2", "Gemma3")},
}


def norm_parts(norm: Callable[[Tensor], Tensor]) -> NormParts | None:
    """Take a norm that `input_norm_of` returned apart; `None` if it is of a class not known here."""
    if norm is _unchanged:
        return NormParts("none")
    if type(norm) is nn.LayerNorm:
        whole = norm.weight is not None and norm.bias is not None
        return NormParts("layer", norm.weight, norm.bias, norm.eps) if whole else None
    if isinstance(norm, nn.Module) and type(norm).__name__ in _RMS_NORMS:
        eps, offset = _RMS_NORMS[type(norm).__name__]
        assert isinstance(norm.weight, Tensor)
        return NormParts("rms", norm.weight, None, getattr(norm, eps), offset)
    return None
