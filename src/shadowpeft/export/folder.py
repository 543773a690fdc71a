"""A stock model folder, as transformers, vLLM and servers for text generation read it."""

import re
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.errors import ConfigError

# The default of transformers.
_SHARD = "50GB"


def refuse_shard_size(size: str | None) -> None:
    """Raise unless transformers can read the size of a shard.

    Raises:
        ConfigError: it cannot.
    """
    if size is not None and not re.fullmatch(r"[1-9]\d*(KB|MB|GB|TB)", size):
        raise ConfigError(f"max_shard_size must be a number and a unit, such as 500MB or 2GB, got {size!r}")


def bytes_of(model: PreTrainedModel) -> int:
    """Return the bytes of the weights in a file, where tied ones are stored once."""
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    folder: Path,
    max_shard_size: str | None,
) -> None:
    """Write a new folder: weights, configurations, the tokenizer with its chat template, and the card.

    Args:
        model: the detached model.
        tokenizer: its tokenizer.
        card: content of its `README.md`.
        folder: must not exist.
        max_shard_size: largest file of weights, such as `2GB`; `None` for transformers' default.
    """
    folder.mkdir()
    model.save_pretrained(folder, max_shard_size=max_shard_size or _SHARD)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
