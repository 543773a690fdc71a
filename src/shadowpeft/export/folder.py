"""A stock model folder, as transformers, vLLM and text-generation servers read it."""

import re
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.errors import ConfigError

_SHARD = "50GB"  # transformers' own


def refuse_shard_size(size: str | None) -> None:
    """Raise unless transformers can read the size.

    Raises:
        ConfigError: it cannot.
    """
    if size is not None and not re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", size):
        raise ConfigError(f"max_shard_size must be a number and a unit, such as 500MB or 2GB, got {size!r}")


def bytes_of(model: PreTrainedModel) -> int:
    """Count what the weights take in a file; tied ones are there once."""
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    folder: Path,
    max_shard_size: str | None,
) -> None:
    """Write weights, configurations, tokenizer with its chat template, and card."""
    folder.mkdir()
    model.save_pretrained(folder, max_shard_size=max_shard_size or _SHARD)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
