"""llama.cpp's layout of a model: its names for the hyperparameters, and the name and the form of each tensor.

The names come from the package `gguf`. The forms differ where llama.cpp computes something otherwise than
transformers does; the table of `gguf_families` says where.
"""

import math
from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shadowpeft import arch
from shadowpeft.errors import UnsupportedModelError
from shadowpeft.export.gguf_families import LAYOUTS, Cycle, Layout

# Stands for no soft cap if llama.cpp always applies one: cap * tanh(x / cap) is then x to the last digit of
# float32.
_NO_CAP = 1e9


def layout_of(config: PretrainedConfig) -> Layout:
    """Return the layout of a model, by its configuration alone.

    Raises:
        UnsupportedModelError: llama.cpp does not compute it, or it cannot be written here; the message says
            why, or which families can.
    """
    family = arch.family_of_config(config)
    if family.model_type not in LAYOUTS:
        known = ", ".join(arch.FAMILIES[name].name for name in LAYOUTS)
        raise UnsupportedModelError(
            f"a {family.name} shadow cannot be written as GGUF; the families that can: {known}; give --to hf"
        )
    layout = LAYOUTS[family.model_type]
    problem = next(_problems(config, layout), None)
    if problem is not None:
        raise UnsupportedModelError(
            f"this {family.name} shadow cannot be written as GGUF: {problem}; give --to hf"
        )
    return layout


def _problems(config: PretrainedConfig, layout: Layout) -> Iterator[str]:
    """Yield what the model computes and llama.cpp does not."""
    values = vars(config)
    if not arch.is_dense(config):
        yield "it has experts, or blocks that a shadow has not"
    if layout.activation is not None and values[layout.activation] not in layout.activations:
        yield f"its activation is {values[layout.activation]}, llama.cpp's {layout.activations[0]}"
    for field, needed in layout.needs:
        got, wanted = values[field], needed
        if isinstance(needed, Cycle):
            # A shadow keeps the base's list, and has fewer blocks.
            got, wanted = got[: config.num_hidden_layers], needed.of(config.num_hidden_layers)
        if got != wanted:
            yield f"{field} is {got}, and llama.cpp computes {wanted} alone"
    for field, value in values.items():
        if field.endswith("_bias") and value is True and field not in layout.biases:
            yield f"{field} is set, and llama.cpp reads no such bias"
    for kind in _rope_types(config) - {*layout.ropes, "partial" if layout.turns == "part" else "default"}:
        yield f"its rotary embedding is of the type {kind}"
    if layout.windows == "period" and _period(config) is None:
        yield "its blocks with a sliding window do not come in turns"
    if layout.needs_windows and not any(_windowed(config)):
        yield "none of its blocks has a sliding window, and llama.cpp computes models with some"


def _rope_types(config: PretrainedConfig) -> set[str]:
    ropes = _ropes(config)
    kinds = {_kind(part) for part in ropes.values()}
    if any(_turned(part) != 1.0 for part in ropes.values()):
        kinds.add("partial")
    # llama.cpp scales those of blocks with full attention alone.
    if ropes and ropes["sliding_attention"] is not ropes["full_attention"]:
        kinds.update(
            f"{kind} in blocks with a window" for kind in {_kind(ropes["sliding_attention"])} - {"default"}
        )
    return kinds


def _kind(rope: dict[str, Any]) -> str:
    kind = rope.get("rope_type", "default")
    if kind == "dynamic" and rope.get("alpha"):
        return "fixed alpha"
    if kind == "yarn" and rope.get("truncate") is False:
        return "yarn without truncation"
    return kind


def _turned(rope: dict[str, Any]) -> float:
    """Return the share of each head that is turned."""
    return rope.get("partial_rotary_factor", 1.0)


def _ropes(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """Return the rotary parameters of blocks with full attention and of blocks with a window; none at all in
    a family without."""
    given = vars(config).get("rope_parameters")
    if given is None:
        return {}
    # Most families have one set for all blocks.
    if "full_attention" not in given:
        return {"full_attention": given, "sliding_attention": given}
    return given


def head_dim_of(config: PretrainedConfig) -> int:
    """Return the width of an attention head."""
    return vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads


def write_sizes(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    """Write the hyperparameters, by llama.cpp's names for them."""
    config = model.config
    layout, head_dim = layout_of(config), head_dim_of(config)
    writer.add_context_length(_context(config, layout))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    # Of the tensor: some families round what the configuration says.
    writer.add_feed_forward_length(
        next(tensor.shape[1] for name, tensor in tensors(model) if "ffn_down" in name and tensor.ndim == 2)
    )
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(vars(config).get("num_key_value_heads") or config.num_attention_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    eps = layout.eps if isinstance(layout.eps, float) else vars(config)[layout.eps]
    (writer.add_layer_norm_eps if layout.centred else writer.add_layer_norm_rms_eps)(eps)
    if layout.turns is not None:
        _write_ropes(writer, config, layout)
    if layout.windows is not None:
        _write_windows(writer, config, layout)
    if layout.caps:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping or _NO_CAP)
        writer.add_final_logit_softcapping(config.final_logit_softcapping or _NO_CAP)
    for name, field in layout.numbers:
        writer.add_float32(f"{layout.name}.{name}", _number(config, field))


def _number(config: PretrainedConfig, field: str) -> float:
    """Return the value of a field of the configuration, or, after a dot, of a dictionary in it."""
    outer, _, inner = field.partition(".")
    value = vars(config)[outer]
    return float(value[inner] if inner else value)


def _write_ropes(writer: gguf.GGUFWriter, config: PretrainedConfig, layout: Layout) -> None:
    full, sliding = _ropes(config)["full_attention"], _ropes(config)["sliding_attention"]
    turned = int(head_dim_of(config) * _turned(full))
    writer.add_rope_dimension_count(turned)
    base = full["rope_theta"]
    if _kind(full) == "fixed alpha":
        base *= full["alpha"] ** (turned / (turned - 2))
    writer.add_rope_freq_base(base)
    if "original_max_position_embeddings" in full:
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if full.get("rope_type") == "yarn":
        _write_yarn(writer, config, full)
    if sliding["rope_theta"] != full["rope_theta"]:
        writer.add_float32(gguf.Keys.Rope.FREQ_BASE_SWA.format(arch=layout.name), sliding["rope_theta"])


def _write_yarn(writer: gguf.GGUFWriter, config: PretrainedConfig, rope: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)
    # llama.cpp multiplies queries and keys by what the factor gives them by default, and by this.
    by_kind = {"layer_type": "full_attention"} if rope is not config.rope_parameters else {}
    _, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"), **by_kind)
    writer.add_rope_scaling_attn_factors(scale / (1 + 0.1 * math.log(rope["factor"])))


def _write_windows(writer: gguf.GGUFWriter, config: PretrainedConfig, layout: Layout) -> None:
    if not any(_windowed(config)):
        return
    writer.add_sliding_window(config.sliding_window)
    if layout.windows == "period":
        period = _period(config)
        assert period is not None
        writer.add_uint32(gguf.Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch=layout.name), period)
        return
    assert layout.window_every is not None
    # llama.cpp's own pattern for the family need not be written.
    if _windowed(config) != _in_turns(layout.window_every, config.num_hidden_layers):
        writer.add_sliding_window_pattern(_windowed(config))


def _windowed(config: PretrainedConfig) -> list[bool]:
    """Return which blocks have a sliding window."""
    return [config.sliding_window is not None and kind == "sliding_attention" for kind in config.layer_types]


def _in_turns(period: int, blocks: int) -> list[bool]:
    """Return which blocks have a window where the last of each period has none."""
    return [(block + 1) % period != 0 for block in range(blocks)]


def _period(config: PretrainedConfig) -> int | None:
    """Return the period by which blocks have a sliding window, `None` if there is none."""
    blocks, windowed = config.num_hidden_layers, _windowed(config)
    # The longest is longer than the model, so that all blocks have one.
    return next((period for period in range(1, blocks + 2) if _in_turns(period, blocks) == windowed), None)


def _context(config: PretrainedConfig, layout: Layout) -> int:
    """Return the most tokens of a text, which must fit in the window if llama.cpp has none for the family."""
    kinds, window = vars(config).get("layer_types"), vars(config).get("sliding_window")
    most = arch.context_of(config)
    assert most is not None
    if layout.windows is None and window and (kinds is None or "sliding_attention" in kinds):
        return min(most, window)
    return most


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor by llama.cpp's name and in its form, one after another."""
    config = model.config
    layout = layout_of(config)
    names = gguf.get_tensor_name_map(_architecture(layout), config.num_hidden_layers)
    for whole, given in model.state_dict().items():
        if whole == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for name, tensor in _parts(whole, given, layout):
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert theirs is not None, f"gguf has no name for {name}"
            yield theirs, _formed(name, tensor, config, layout)
    if _ropes(config) and _ropes(config)["full_attention"].get("rope_type") == "llama3":
        yield "rope_freqs.weight", _frequency_factors(config)


def _parts(whole: str, tensor: Tensor, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Yield what a tensor consists of to llama.cpp; most are one."""
    for end, parts in layout.parts:
        if f".{whole}".endswith(f".{end}"):
            before = whole.removesuffix(end)
            if len(parts) == 1 and tensor.ndim < 3:
                yield f"{before}{parts[0]}", tensor
                return
            # A mixture's tensor has a dimension for its experts, and a shadow one expert.
            rows = tensor.reshape(tensor.shape[-2:]).chunk(max(len(parts), 1))
            yield from ((f"{before}{part}", piece) for part, piece in zip(parts, rows, strict=False))
            return
    yield whole, tensor


def _architecture(layout: Layout) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.name)


def _formed(name: str, tensor: Tensor, config: PretrainedConfig, layout: Layout) -> Tensor:
    """Return what llama.cpp needs so that it computes what transformers computes with the tensor."""
    if layout.pairs_neighbours and ".q_proj." in name:
        return _neighbours(tensor, config.num_attention_heads)
    if layout.pairs_neighbours and ".k_proj." in name:
        return _neighbours(tensor, config.num_key_value_heads)
    if layout.columns_first and ".h." in name and tensor.ndim == 2:
        return tensor.T
    formed = tensor
    if name.endswith("norm.weight"):
        formed = tensor.float() + layout.norm_offset
    # llama.cpp divides attention logits by the square root of the head's width. Gemma divides by a number of
    # its own: the quotient goes into what scales the queries.
    if layout.scales_queries is not None and name.endswith(layout.scales_queries):
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
