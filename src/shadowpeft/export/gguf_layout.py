"""llama.cpp's layout of a model: its names for the hyperparameters, and the name and the form of each tensor.

The names come from the package `gguf`. The forms differ where llama.cpp computes something otherwise than
transformers does; `Layout` says where, for each family.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shadowpeft import arch
from shadowpeft.errors import UnsupportedModelError

# Stands for no soft cap if llama.cpp always applies one: cap * tanh(x / cap) is then x to the last digit of
# float32.
_NO_CAP = 1e9


@dataclass(frozen=True)
class Layout:
    """Differences between llama.cpp and transformers in one family.

    Attributes:
        name: llama.cpp's name of the architecture.
        activation: the only activation that llama.cpp computes there.
        pairs_neighbours: its rotary embedding rotates the pairs (2i, 2i + 1), that of transformers (i, i +
            half).
        norm_offset: transformers multiplies by the weight of a norm plus this, llama.cpp by the weight.
        window_every: distance between two blocks without a sliding window, by llama.cpp's default; `None` if
            it has no sliding windows.
        caps: llama.cpp always soft-caps the attention logits and the output.
        always_tied: llama.cpp reads no head but the embeddings.
        biases: llama.cpp reads biases of the attention if the model has them.
    """

    name: str
    activation: str
    pairs_neighbours: bool = False
    norm_offset: float = 0.0
    window_every: int | None = None
    caps: bool = False
    always_tied: bool = False
    biases: bool = False


LAYOUTS = {
    "llama": Layout("llama", "silu", pairs_neighbours=True, biases=True),
    "mistral": Layout("llama", "silu", pairs_neighbours=True),
    "qwen2": Layout("qwen2", "silu"),
    "qwen3": Layout("qwen3", "silu"),
    "gemma2": Layout(
        "gemma2", "gelu_pytorch_tanh", norm_offset=1.0, window_every=2, caps=True, always_tied=True
    ),
    "gemma3_text": Layout("gemma3", "gelu_pytorch_tanh", norm_offset=1.0, window_every=6),
}
# The shadow of a Qwen3-MoE has no experts and is a Qwen3.
FAMILIES = (*LAYOUTS, "qwen3_moe")


def layout_of(config: PretrainedConfig) -> Layout:
    """Return the layout of a model, by its configuration alone.

    Raises:
        UnsupportedModelError: llama.cpp does not compute it, or it cannot be written here; the message says
            why, or which families can.
    """
    family = arch.family_of_config(config)
    if family.model_type == "qwen3_moe" and len(config.mlp_only_layers) == config.num_hidden_layers:
        return layout_of(_as_qwen3(config))
    if family.model_type not in LAYOUTS:
        known = ", ".join(arch.FAMILIES[name].name for name in FAMILIES)
        raise UnsupportedModelError(
            f"a {family.name} shadow cannot be written as GGUF; the families that can: {known}; give --to hf"
        )
    layout = LAYOUTS[family.model_type]
    problem = next(_problems(config, family, layout), None)
    if problem is not None:
        raise UnsupportedModelError(
            f"this {family.name} shadow cannot be written as GGUF: {problem}; give --to hf"
        )
    return layout


def _problems(config: PretrainedConfig, family: arch.Family, layout: Layout) -> Iterator[str]:
    """Yield what the model computes and llama.cpp does not."""
    activation = config.hidden_activation if family.softcaps else config.hidden_act
    if activation != layout.activation:
        yield f"its activation is {activation}, llama.cpp's {layout.activation}"
    if layout.always_tied and not config.tie_word_embeddings:
        yield "llama.cpp ties its head to its embeddings, and here they differ"
    # Not every configuration has the attribute.
    if not layout.biases and vars(config).get("attention_bias"):
        yield "its attention has biases"
    if family.softcaps and not layout.caps and config.final_logit_softcapping is not None:
        yield "its logits are soft-capped"
    for kind in _rope_types(config) - _known_ropes(layout):
        yield f"its rotary embedding is of the type {kind}"


def _as_qwen3(config: PretrainedConfig) -> PretrainedConfig:
    """Return the configuration of a Qwen3-MoE base's shadow, which has no experts, as that of a Qwen3."""
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return CONFIG_MAPPING["qwen3"].from_dict(values)


def _rope_types(config: PretrainedConfig) -> set[str]:
    kinds = {part.get("rope_type", "default") for part in _ropes(config).values()}
    return kinds | {
        "partial" for part in _ropes(config).values() if part.get("partial_rotary_factor", 1.0) != 1.0
    }


def _known_ropes(layout: Layout) -> set[str]:
    known = {"default", "linear"}
    if layout.name == "llama":
        known.add("llama3")
    return known


def _ropes(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters of blocks with full attention and of blocks with a window."""
    given = config.rope_parameters
    # Most families have one set for all blocks.
    if "full_attention" not in given:
        return {"full_attention": given, "sliding_attention": given}
    return given


def head_dim_of(config: PretrainedConfig) -> int:
    """Return the width of an attention head."""
    return vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads


def write_sizes(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """Write the hyperparameters, by llama.cpp's names for them."""
    layout, head_dim = layout_of(config), head_dim_of(config)
    writer.add_context_length(_context(config, layout))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_ropes_and_windows(writer, config, layout)
    if layout.caps:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping or _NO_CAP)
        writer.add_final_logit_softcapping(config.final_logit_softcapping or _NO_CAP)


def _write_ropes_and_windows(writer: gguf.GGUFWriter, config: PretrainedConfig, layout: Layout) -> None:
    full, sliding = _ropes(config)["full_attention"], _ropes(config)["sliding_attention"]
    writer.add_rope_freq_base(full["rope_theta"])
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if layout.window_every is not None:
        windowed = [kind == "sliding_attention" for kind in config.layer_types]
        writer.add_sliding_window(config.sliding_window)
        # llama.cpp's own pattern for the family need not be written.
        if windowed != [(block + 1) % layout.window_every != 0 for block in range(len(windowed))]:
            writer.add_sliding_window_pattern(windowed)
        if sliding["rope_theta"] != full["rope_theta"]:
            writer.add_float32(gguf.Keys.Rope.FREQ_BASE_SWA.format(arch=layout.name), sliding["rope_theta"])


def _context(config: PretrainedConfig, layout: Layout) -> int:
    """Return the most tokens of a text, which must fit in the window if llama.cpp has none for the family."""
    kinds = vars(config).get("layer_types") or []
    windowed = config.model_type == "mistral" or "sliding_attention" in kinds
    most, window = config.max_position_embeddings, vars(config).get("sliding_window")
    if windowed and layout.window_every is None and window:
        return min(most, window)
    return most


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor by llama.cpp's name and in its form, one after another."""
    config = model.config
    layout = layout_of(config)
    names = gguf.get_tensor_name_map(_architecture(layout), config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None, f"gguf has no name for {name}"
        yield theirs, _formed(name, tensor, config, layout)
    if _ropes(config)["full_attention"].get("rope_type") == "llama3":
        yield "rope_freqs.weight", _frequency_factors(config)


def _architecture(layout: Layout) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.name)


def _formed(name: str, tensor: Tensor, config: PretrainedConfig, layout: Layout) -> Tensor:
    """Return what llama.cpp needs so that it computes what transformers computes with the tensor."""
    if layout.pairs_neighbours and ".q_proj." in name:
        return _neighbours(tensor, config.num_attention_heads)
    if layout.pairs_neighbours and ".k_proj." in name:
        return _neighbours(tensor, config.num_key_value_heads)
    formed = tensor
    if name.endswith("norm.weight"):
        formed = tensor.float() + layout.norm_offset
    # llama.cpp divides attention logits by the square root of the head's width. Gemma divides by a number of
    # its own: the quotient goes into what scales the queries.
    queries = {"gemma2": ".q_proj.weight", "gemma3_text": ".q_norm.weight"}.get(config.model_type)
    if queries is not None and name.endswith(queries):
        return formed.float() * (head_dim_of(config) / config.query_pre_attn_scalar) ** 0.5
    return formed


def _neighbours(tensor: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head: the new row 2i is the old row i, and 2i + 1 is the old i + half."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _frequency_factors(config: PretrainedConfig) -> Tensor:
    """Return the factors by which Llama 3 lowers the rotary frequencies, [head width / 2].

    llama.cpp divides by them.
    """
    width, theta = head_dim_of(config), _ropes(config)["full_attention"]["rope_theta"]
    slowed, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    return (plain / slowed.double()).float()


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a float32 array of numpy, which has no bfloat16."""
    return tensor.detach().float().cpu().contiguous().numpy()
