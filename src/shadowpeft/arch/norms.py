"""The norms of a block: the one its attention reads through, and those behind its layers."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import is_accelerate_available

from shadowpeft.arch.family import Family
from shadowpeft.arch.lookup import family_of
from shadowpeft.arch.modules import blocks_of
from shadowpeft.errors import UnsupportedModelError


def input_norm_of(block: nn.Module, family: Family) -> Callable[[Tensor], Tensor]:
    """Return the norm that a block's attention reads the stream through; the identity where there is none."""
    # An OPT may have its norms behind the attention and the MLP.
    if family.input_norm is None or (family.model_type == "opt" and not block.do_layer_norm_before):
        return _unchanged
    # Falcon's newer layout has one norm for the attention and one for the MLP, under other names.
    name = "ln_attn" if family.model_type == "falcon" and hasattr(block, "ln_attn") else family.input_norm
    # From the dictionary in which torch keeps it, as `_parameter`.
    norm = block._modules.get(name)
    return getattr(block, name) if norm is None else norm


def output_gains(model: PreTrainedModel) -> list[Tensor] | None:
    """Return for each block the relative size of what its attention and MLP write to each channel.

    c = sqrt(w_1^2 + w_2^2) / mean(sqrt(w_1^2 + w_2^2)), w_i the weights of the norms behind the two, and of
    those behind what else it writes

    The weights of a norm give the size of its output, whatever its input.

    Returns:
        c of each block, (D,), in float32 at least; `None` for a family without such norms.

    Raises:
        UnsupportedModelError: the weights are on the meta device and cannot be read. Not raised while the
            caller builds on the meta device.
    """
    names = family_of(model).norms_behind(model.config)
    if not names:
        return None
    gains = []
    for block in blocks_of(model):
        weights_D = [_rms_weight(block.get_submodule(name)) for name in names]
        size_D = functools.reduce(torch.hypot, weights_D)
        gains.append(size_D / size_D.mean())
    # One builds on the meta device to count parameters, and then needs no values.
    builds_on_meta = torch.get_default_device().type == "meta"
    if any(gains_D.is_meta for gains_D in gains) and not builds_on_meta:
        raise UnsupportedModelError(
            "the base's weights are on the meta device, which holds no values; load them first "
            "(from_pretrained does, and with device_map='auto' where memory is short), then attach"
        )
    return gains


def _rms_weight(norm: nn.Module) -> Tensor:
    """Return the factor of each channel that an RMS norm applies, in float32 at least."""
    context: AbstractContextManager[None] = nullcontext()
    # Perhaps the weight is offloaded; then accelerate has the values.
    if norm.get_parameter("weight").is_meta and is_accelerate_available():
        from accelerate.utils import align_module_device

        context = align_module_device(norm)
    # On the CPU, whatever device the caller builds on: values that are read from a disk are needed now.
    with torch.device("cpu"), context:
        parts = norm_parts(norm)
        assert parts is not None, f"{type(norm).__name__} is missing in _RMS_NORMS"
        assert parts.weight is not None
        wide = torch.promote_types(parts.weight.dtype, torch.float32)
        return parts.weight.detach().to(wide) + parts.offset


def _unchanged(h_BTD: Tensor) -> Tensor:
    return h_BTD


class NormParts(NamedTuple):
    """What a norm computes, for a kernel that computes it together with a product.

    `kind` is `rms` for h (weight + offset) / sqrt(mean(h^2) + eps), `layer` for torch's LayerNorm and `none`
    for h itself.
    """

    kind: Literal["none", "rms", "layer"]
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    offset: float = 0.0


# Families whose RMS norm is Llama's, by the beginnings of their classes' names.
_AS_LLAMAS = (
    "Afmoe", "Apertus", "Arcee", "BitNet", "Cohere2Moe", "Cwm", "DeepseekV2", "DeepseekV3", "DeepseekV32",
    "Dots1", "Ernie4_5", "Ernie4_5_Moe", "Exaone4", "ExaoneMoe", "FalconH1", "FlexOlmo", "Glm", "Glm4",
    "Glm4Moe", "Glm4MoeLite", "GlmMoeDsa", "GptOss", "Granite", "GraniteMoe", "GraniteMoeHybrid",
    "GraniteMoeSWA", "GraniteMoeShared", "GraniteSWA", "HYV3", "Helium", "HunYuanDenseV1", "HunYuanMoEV1",
    "HyperCLOVAX", "Jamba", "KimiLinear", "Lfm2", "Lfm2Moe", "Lfm3", "Llama", "Mellum", "MiMoV2Flash",
    "MiniMaxM2", "Ministral", "Ministral3", "Mistral", "Mixtral", "NemotronH", "Olmo2", "Olmo3", "Olmoe",
    "Phi3", "Qwen2", "Qwen2Moe", "Qwen3", "Qwen3Moe", "Qwen3VLText",
    "SeedOss", "SmolLM3", "SolarOpen",
)  # fmt: skip
_AS_GEMMAS = ("Gemma", "Gemma2", "Gemma3", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe", "VaultGemma")
# The RMS norms of the table's families: the attribute that holds epsilon, and what is added to the weight.
_RMS_NORMS = {
    **{f"{name}RMSNorm": ("variance_epsilon", 0.0) for name in _AS_LLAMAS},
    **{f"{name}RMSNorm": ("eps", 1.0) for name in _AS_GEMMAS},
    **{f"{name}RMSNorm": ("eps", 0.0) for name in ("Gemma4", "Gemma4Unified", "Llama4Text")},
}


def norm_parts(norm: Callable[[Tensor], Tensor]) -> NormParts | None:
    """Return what a norm of `input_norm_of` computes, `None` if its class is not known here."""
    if norm is _unchanged:
        return NormParts("none")
    if type(norm) is nn.LayerNorm:
        weight, bias = _parameter(norm, "weight"), _parameter(norm, "bias")
        if weight is None or bias is None:
            return None
        return NormParts("layer", weight, bias, norm.eps)
    known = _RMS_NORMS.get(type(norm).__name__)
    if known is None or not isinstance(norm, nn.Module):
        return None
    eps, offset = known
    return NormParts("rms", _parameter(norm, "weight"), None, getattr(norm, eps), offset)


def _parameter(norm: nn.Module, name: str) -> Tensor | None:
    """Return a norm's weight or bias.

    It is read at every boundary, and an entry of the dictionary in which torch keeps it takes the host a
    tenth of the time that the attribute takes. What is not kept there is computed when it is asked for, as a
    parametrization does.
    """
    kept = norm._parameters
    # Its entry, and not by `get`: a dictionary may gather what it is asked for.
    if name in kept and (found := kept[name]) is not None:
        return found
    return getattr(norm, name)
