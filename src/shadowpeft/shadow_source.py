"""What a shadow can start from when it is given by path: our own shadow folder, or a projected model of the authors' package."""

from pathlib import Path
from typing import TYPE_CHECKING

from shadowpeft import authors, files, shadow_folder
from shadowpeft.config import ShadowConfig
from shadowpeft.shadow import Shadow

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def holds(source: str | Path) -> bool:
    """Tell whether a path is a folder of a pretrained shadow, rather than of a whole model."""
    return shadow_folder.holds(source) or authors.holds(source)


def load(base: "PreTrainedModel", config: ShadowConfig, folder: str | Path) -> tuple[Shadow, ShadowConfig]:
    """Read the shadow of a folder, and take its sizes into the settings of the adapter that will hold it.

    Raises:
        CheckpointError: the folder is damaged, holds something else, or its shadow was pretrained beside another base.
        ConfigError: the settings ask for another size.
        UnsupportedModelError: the shadow does not fit the base.
    """
    shadow = read(base, folder)
    return shadow, shadow_folder.with_sizes(config, shadow, folder)


def read(base: "PreTrainedModel", folder: str | Path) -> Shadow:
    """Read the shadow of a folder.

    Raises:
        CheckpointError: the folder is damaged, holds something else, or its shadow was pretrained beside another base.
        UnsupportedModelError: the shadow does not fit the base.
    """
    return authors.load(base, folder) if authors.holds(folder) else shadow_folder.load(base, folder)


def open_source(source: str, dtype: "torch.dtype", attn_implementation: str | None = None) -> "PreTrainedModel | str":
    """Turn what a user names, a folder or a hub id, into what `attach` takes: a pretrained shadow's folder as it is, a model loaded.

    Raises:
        UserError: there is no such model or folder, or it cannot be read.
    """
    return source if holds(source) else files.load_model(source, dtype, attn_implementation)


def config_of(source: str, base: "PretrainedConfig") -> "PretrainedConfig":
    """Read the configuration of the decoder that `open_source` would make a shadow of; no weights are loaded.

    Raises:
        UserError: there is no such model or folder, or its description cannot be read.
    """
    if authors.holds(source):
        return authors.backbone_config(source)
    return shadow_folder.backbone_config(source, base) if shadow_folder.holds(source) else files.load_config(source)
