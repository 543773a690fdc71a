"""What a configuration tells about its model, and the configuration of a shadow derived from it."""

import copy
from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from shadowpeft.arch.families import FAMILIES
from shadowpeft.arch.family import DEPTH, EVERY_BLOCK, Each, Family, Task
from shadowpeft.arch.lookup import encodes, family_of, family_of_config
from shadowpeft.config import ResolvedConfig
from shadowpeft.errors import ConfigError


def context_of(config: PretrainedConfig) -> int | None:
    """Return the number of positions a model takes, `None` if it has no limit."""
    field = family_of_config(config).context
    if field is None:
        return None
    return int(getattr(config, field))


def rope_switch_of(config: PretrainedConfig) -> int | None:
    """Return the length above which a model encodes positions differently, `None` if there is none."""
    field = family_of_config(config).rope_switch
    if field is None:
        return None
    return getattr(config, field, None)


def uses_flash_attention(config: PretrainedConfig) -> bool:
    """Return whether a model's attention is a flash attention's, which reads no mask but of padding."""
    return "flash" in (config._attn_implementation or "")


def needs_no_mask(config: PretrainedConfig, index: int, tokens: int) -> bool:
    """Return whether a block's attention is right without a mask for whole rows: one document, no padding.

    Args:
        config: the model's configuration.
        index: which block, from 0.
        tokens: the length of the rows.
    """
    if not FAMILIES[config.model_type].masks_itself or config._attn_implementation != "sdpa":
        return False
    if encodes(config) is not None:
        return False
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and layer_types[index] == "full_attention":
        return True
    window = getattr(config, "sliding_window", None)
    return window is None or tokens <= window


def mlp_width(config: PretrainedConfig) -> int | None:
    """Return the width of the MLP in a model's blocks, `None` where the family has no setting for it."""
    field = FAMILIES[config.model_type].mlp
    if field is None:
        return None
    # Some configurations leave the width open, and their models take this one.
    return getattr(config, field) or 4 * config.hidden_size


def shadow_model_config(model: PreTrainedModel, config: ResolvedConfig) -> PretrainedConfig:
    """Derive the configuration of an implicit shadow: the base's, with fewer and smaller blocks.

    A mixture-of-experts base gets dense shadow blocks: experts that no token chose would receive no gradient.

    Raises:
        ConfigError: a size is set that the family does not have, or that does not fit the base.
    """
    family = family_of(model)
    sizes = {
        "shadow_intermediate_size": (family.mlp, config.shadow_intermediate_size),
        "shadow_attention_heads": ("num_attention_heads", config.shadow_attention_heads),
        "shadow_key_value_heads": (family.kv_heads, config.shadow_key_value_heads),
        "shadow_head_dim": (family.head_dim, config.shadow_head_dim),
    }
    values = copy.deepcopy(model.config)
    # The shadow of a quantised base is trained and so cannot be quantised.
    vars(values).pop("quantization_config", None)
    # First: a size may be that of a single block in the base, and of all blocks in the shadow.
    make_shadow(values, config.shadow_layers)
    for setting, (field, value) in sizes.items():
        if value is None:
            continue
        if field is None:
            raise ConfigError(f"{setting} cannot be set: {family.name} has no such size; leave it out")
        setattr(values, field, value)
    _refuse_heads(family, values)
    values.tie_word_embeddings = model.config.tie_word_embeddings
    return values


def _refuse_heads(family: Family, config: PretrainedConfig) -> None:
    """Raise if the heads do not divide what they must divide, before transformers' blocks fail on it."""
    heads, head_dim, shared = config.num_attention_heads, None, None
    if family.head_dim is not None:
        # Some configurations leave it out, and their models then divide the width.
        head_dim = getattr(config, family.head_dim, None)
    if head_dim is None and config.hidden_size % heads:
        raise ConfigError(
            f"shadow_attention_heads must divide the base's width {config.hidden_size}, got {heads}"
        )
    if head_dim is not None and head_dim % 2:
        raise ConfigError(f"shadow_head_dim must be even, got {head_dim}")
    # A Falcon with multi-query attention has this field and does not use it.
    if family.kv_heads is not None and family.model_type != "falcon":
        shared = getattr(config, family.kv_heads, None)
    if shared and heads % shared:
        raise ConfigError(
            f"shadow_attention_heads ({heads}) must be a multiple of shadow_key_value_heads ({shared})"
        )


def wants_router_logits(config: PretrainedConfig) -> bool:
    """Return whether a mixture's configuration asks for its routers' logits, and so for a loss on them."""
    return bool(getattr(config, "output_router_logits", False))


def depth_of(config: PretrainedConfig) -> int:
    """Return the number of blocks."""
    blocks: int = config.num_hidden_layers
    return blocks


def layers_of(config: PretrainedConfig) -> int:
    """Return the number of layers, each an attention and an MLP; in most families a layer is a block."""
    return depth_of(config) // family_of_config(config).blocks_a_layer


# Kinds of blocks that attend; blocks of other kinds keep a recurrent state. The last is the name of the one
# before it up to some version between 5.17 and 5.24.
ATTEND = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "indexed_attention",
    "deepseek_sparse_attention",
)


def make_shadow(config: PretrainedConfig, layers: int) -> None:
    """Change a base's configuration to that of its shadow: fewer blocks, dense ones that attend.

    Experts that no token chose would receive no gradient, and a recurrent state cannot be cropped.

    Args:
        config: changed in place.
        layers: the number of layers, each an attention and an MLP; in most families a layer is a block.

    Raises:
        ConfigError: the configuration lists the kinds of fewer blocks.
    """
    family, kinds = family_of_config(config), getattr(config, "layer_types", None)
    if kinds is not None and family.lists_kinds:
        if layers > len(kinds):
            raise ConfigError(f"shadow_layers must be at most the base's {len(kinds)}, got {layers}")
        config.layer_types = [kind if kind in ATTEND else "full_attention" for kind in kinds[:layers]]
    config.num_hidden_layers = layers
    for field, value in (*family.dense, *family.plain):
        setattr(config, field, _value(value, layers))


def _value(value: Any, layers: int) -> Any:
    """Return a value of `Family.dense` or `Family.plain` for a number of layers."""
    if value is DEPTH:
        return layers
    if value is EVERY_BLOCK:
        return list(range(layers))
    if isinstance(value, Each):
        return value.of(layers)
    return value


def is_dense(config: PretrainedConfig) -> bool:
    """Return whether a model has what the shadows of its family have: no choice among experts, blocks that
    attend, and read the stream alone."""
    family, kinds = family_of_config(config), getattr(config, "layer_types", None) or []
    rows, layers = (*family.dense, *family.plain), layers_of(config)
    as_in_a_shadow = all(getattr(config, field) == _value(value, layers) for field, value in rows)
    return as_in_a_shadow and (family.shadow_recurs or all(kind in (*ATTEND, "mlp") for kind in kinds))


def build(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """Build an untrained stock model of a supported family from its configuration."""
    name = family_of_config(config).class_name(task)
    return getattr(transformers, name)(config)
