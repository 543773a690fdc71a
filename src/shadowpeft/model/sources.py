"""What a shadow can start from: at random, a model, or a path to our own shadow folder or to a projected model of the authors' package."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.data import tokenizers
from shadowpeft.shadow import Shadow, explicit, implicit
from shadowpeft.storage import authors_folder, shadow_folder, stock_models

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# What pretrained shadows were measured with (results/quality/large_base, results/method/search); 0.6 was for random ones alone.
PRETRAINED_ALPHA = 0.3


def holds(source: str | Path) -> bool:
    """Tell whether a path is a folder of a pretrained shadow, rather than of a whole model."""
    return shadow_folder.holds(source) or authors_folder.holds(source)


def make(
    base: "PreTrainedModel", config: ShadowConfig, source: "PreTrainedModel | str | Path | None"
) -> tuple[Shadow, ShadowConfig]:
    """Make the shadow of a fresh adapter, and settle in the adapter's settings what depends on base and shadow.

    Args:
        base: the frozen base model.
        config: the adapter's settings.
        source: a model whose decoder is taken, the folder of a pretrained shadow, or `None` for a random shadow of the base's own kind.

    Raises:
        CheckpointError: the folder is damaged, holds something else, or its shadow was pretrained beside another base.
        ConfigError: the settings ask for a size that the base's family or the folder's shadow does not have.
        UnsupportedModelError: the shadow does not fit the base.
    """
    if source is not None and config.unit_state is None:
        config = replace(config, unit_state=config.variant == "normed")
    if source is not None and config.alpha is None and config.variant == "normed":
        config = replace(config, alpha=PRETRAINED_ALPHA)
    if config.output_gains is None:
        config = replace(
            config, output_gains=config.variant == "normed" and bool(arch.family_of(base).output_norms)
        )
    if isinstance(source, str | Path):
        shadow = read(base, source)
        return shadow, shadow_folder.with_sizes(config, shadow, source)
    if source is not None:
        return explicit(base, source), config
    config = arch.with_shadow_sizes(base.config, config)
    return implicit(base, config.resolved()), config


def read(base: "PreTrainedModel", folder: str | Path) -> Shadow:
    """Read the shadow of a folder.

    Raises:
        CheckpointError: the folder is damaged, holds something else, or its shadow was pretrained beside another base.
        UnsupportedModelError: the shadow does not fit the base.
    """
    return (
        authors_folder.load(base, folder)
        if authors_folder.holds(folder)
        else shadow_folder.load(base, folder)
    )


def open_source(
    source: str, dtype: "torch.dtype", attn_implementation: str | None = None
) -> "PreTrainedModel | str":
    """Turn what a user names, a folder or a hub id, into what `attach` takes: a pretrained shadow's folder as it is, a model loaded.

    Raises:
        UserError: there is no such model or folder, or it cannot be read.
    """
    return source if holds(source) else stock_models.load_model(source, dtype, attn_implementation)


def refuse_other_tokens(source: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise where what a user names is a whole model whose tokens are not the base's; the folder of a pretrained shadow knows its base.

    Args:
        source: what the shadow is to start from, a folder or hub id.
        tokenizer: the base's.

    Raises:
        ConfigError: the tokenizers differ.
        UserError: the model's cannot be read.
    """
    if not holds(source):
        tokenizers.refuse_other_tokenizer(tokenizer, stock_models.load_tokenizer(source))


def config_of(source: str, base: "PretrainedConfig") -> "PretrainedConfig":
    """Read the configuration of the decoder that `open_source` would make a shadow of; no weights are loaded.

    Raises:
        UserError: there is no such model or folder, or its description cannot be read.
    """
    if authors_folder.holds(source):
        return authors_folder.backbone_config(source)
    return (
        shadow_folder.backbone_config(source, base)
        if shadow_folder.holds(source)
        else stock_models.load_config(source)
    )
