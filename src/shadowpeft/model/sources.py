"""What a shadow can start from: random weights, a model, or the folder of a pretrained shadow."""

from pathlib import Path
from typing import TYPE_CHECKING

from shadowpeft import arch
from shadowpeft.config import ShadowConfig
from shadowpeft.data import tokenizers
from shadowpeft.shadow import Shadow, explicit, implicit
from shadowpeft.shadow.adapter import Adapter
from shadowpeft.shadow.open_settings import settle
from shadowpeft.storage import authors_folder, shadow_folder, stock_models

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def holds(source: str | Path) -> bool:
    """Return whether a path is the folder of a pretrained shadow, and not of a whole model."""
    return shadow_folder.holds(source) or authors_folder.holds(source)


def fresh_adapter(
    base: "PreTrainedModel", config: ShadowConfig, source: "PreTrainedModel | str | Path | None"
) -> Adapter:
    """Make an untrained adapter, with a value for each setting that was left open.

    Args:
        base: the frozen base model.
        config: the adapter's settings.
        source: a model whose decoder is taken, the folder of a pretrained shadow, or `None` for a random
            shadow of the base's own architecture.

    Raises:
        CheckpointError: the folder is damaged, holds something else, or its shadow was pretrained beside
            another base.
        ConfigError: the settings ask for a size that the base's family or the folder's shadow does not have,
            or do not fit the base otherwise.
        UnsupportedModelError: the shadow does not fit the base.
    """
    if source is None:
        settings = settle(base.config, config)
        return Adapter(base, settings, implicit(base, settings))
    if isinstance(source, str | Path):
        shadow = read(base, source)
        return Adapter(base, settle(base.config, config, shadow, folder=source), shadow)
    shadow = explicit(base, arch.text_model_of(source))
    return Adapter(base, settle(base.config, config, shadow), shadow)


def read(base: "PreTrainedModel", folder: str | Path) -> Shadow:
    """Read the shadow of a folder.

    Raises:
        CheckpointError: the folder is damaged, holds something else, or its shadow was pretrained beside
            another base.
        UnsupportedModelError: the shadow does not fit the base.
    """
    if authors_folder.holds(folder):
        return authors_folder.load(base, folder)
    return shadow_folder.load(base, folder)


def open_source(
    source: str, dtype: "torch.dtype", attn_implementation: str | None = None
) -> "PreTrainedModel | str":
    """Return what `attach` takes for a folder or hub id: the folder of a pretrained shadow, or a model.

    Raises:
        UserError: there is no such model or folder, or it cannot be read.
    """
    if holds(source):
        return source
    return stock_models.load_model(source, dtype, attn_implementation)


def refuse_other_tokens(source: str, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise if the source is a whole model whose tokens are not the base's.

    The folder of a pretrained shadow names its base, and is compared with the base when it is read.

    Args:
        source: folder or hub id that the shadow starts from.
        tokenizer: the base's.

    Raises:
        ConfigError: the tokenizers differ.
        UserError: the model's cannot be read.
    """
    if not holds(source):
        tokenizers.refuse_other_tokenizer(tokenizer, stock_models.load_tokenizer(source))


def is_explicit(source: str | None) -> bool:
    """Return whether a shadow that starts from a folder or hub id is another model's decoder.

    Args:
        source: folder or hub id; `None` for a random shadow.

    Raises:
        CheckpointError: it is a shadow folder whose description cannot be read.
    """
    if source is None:
        return False
    return not shadow_folder.holds(source) or shadow_folder.is_explicit(source)


def config_of(source: str, base: "PretrainedConfig") -> "PretrainedConfig":
    """Return the configuration of the decoder that becomes the shadow, without loading any weights.

    Args:
        source: folder or hub id that the shadow starts from.
        base: the base's configuration, which is returned for an implicit shadow.

    Raises:
        UserError: there is no such model or folder, or its description cannot be read.
    """
    if authors_folder.holds(source):
        return authors_folder.backbone_config(source)
    if shadow_folder.holds(source):
        return shadow_folder.backbone_config(source, base)
    return stock_models.load_config(source)
