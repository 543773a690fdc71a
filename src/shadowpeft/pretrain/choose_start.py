"""The shadow that a run begins with: random or copied blocks, a shadow folder, or a smaller model."""

import itertools
import sys
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.errors import ConfigError
from shadowpeft.model import sources
from shadowpeft.pretrain import start, warm
from shadowpeft.pretrain.config import BLOCKS, FRESH, PretrainConfig
from shadowpeft.pretrain.objective import own_loss
from shadowpeft.pretrain.text import Text
from shadowpeft.shadow import Shadow
from shadowpeft.storage import stock_models

_LAYERS = 2


def initial_shadow(
    config: PretrainConfig, base: PreTrainedModel, text: Text, *, resumes: bool
) -> tuple[Shadow, float | None]:
    """Build the shadow that a run begins with, in float32 and on the base's device.

    Args:
        config: the settings.
        base: the frozen base.
        text: read by a warm start.
        resumes: True if a checkpoint will be loaded into the shadow, so that no projection has to be fitted.

    Returns:
        The shadow and, if it is made from a smaller model, that model's loss on the held-out text.

    Raises:
        ConfigError: the settings do not fit the base.
        UserError: a model or folder cannot be read.
    """
    if config.start == FRESH:
        return start.fresh(base, _sizes(config)), None
    if config.start == BLOCKS:
        return start.from_base_blocks(base, _chosen_blocks(config, base)), None
    if sources.holds(config.start):
        return start.placed(base, sources.read(base, config.start)), None
    model = stock_models.load_model(config.start, torch.float32, config.attn_implementation)
    model = model.to(base.device)  # type: ignore[arg-type]
    shadow = start.from_model(base, model)
    if shadow.projection is not None and config.warm_start != "none" and not resumes:
        _fit_projection(config, base, model, shadow, text=text)
    return shadow, own_loss(model, [torch.from_numpy(row).to(base.device) for row in text.held_out])


def _sizes(config: PretrainConfig) -> ShadowConfig:
    return ShadowConfig(
        shadow_layers=config.layers or _LAYERS,
        shadow_intermediate_size=config.intermediate_size,
        shadow_attention_heads=config.attention_heads,
        shadow_key_value_heads=config.key_value_heads,
        shadow_head_dim=config.head_dim,
    )


def _chosen_blocks(config: PretrainConfig, base: PreTrainedModel) -> list[int]:
    """Return the indices of the base's blocks to copy: those named, or some spread evenly over its depth."""
    depth, layers = len(arch.blocks_of(base)), config.layers or _LAYERS
    if layers > depth:
        raise ConfigError(f"layers must be at most the base's {depth} blocks, got {layers}")
    spread = [round(place * (depth - 1) / max(layers - 1, 1)) for place in range(layers)]
    return config.blocks or spread


def _fit_projection(
    config: PretrainConfig, base: PreTrainedModel, model: PreTrainedModel, shadow: Shadow, *, text: Text
) -> None:
    """Fit the projection before any training, and print how well it fits."""
    assert config.warm_start != "none"
    rows: list[np.ndarray] = []
    if config.warm_start != "pinv":  # it reads the heads alone
        rows = [row["input_ids"] for row in itertools.islice(text.rows, config.warm_start_rows)]
    read, held_out = (_batches(part, config.batch_size, base.device) for part in (rows, text.held_out))
    fit = warm.start(shadow, base, model, method=config.warm_start, text=read, held_out=held_out)
    states = ""
    if fit.in_states is not None:
        states = f"{fit.in_states:.4g} of the base's states at strength {fit.strength:g}, and "
    print(
        f"warm start {config.warm_start}: on held-out text the projection misses {states}"
        f"{fit.in_logits:.4g} of the smaller model's logits ({fit.in_weights:.4g} of its head's weights); "
        "0 is exact, 1 as bad as none",
        file=sys.stderr,
    )


def _batches(rows: Sequence[np.ndarray], size: int, device: torch.device) -> list[torch.Tensor]:
    """Stack rows of one length, or a single row of any length, into batches."""
    return [
        torch.from_numpy(np.stack(rows[first : first + size])).to(device)
        for first in range(0, len(rows), size)
    ]
