"""Which model the flags of `generate` and `eval` name.

This module does not import torch, so that `--help` comes at once.
"""

from dataclasses import dataclass
from typing import Literal

# The types that a model's weights can be loaded in; `auto` is the one they are stored in.
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class ModelChoice:
    """A base, and what of it and its adapter is to be run.

    Args:
        model: folder or hub id of the base, or of an exported model.
        adapter: folder or hub id of the adapter; `None` for the base alone.
        detached: run the shadow alone.
        base: run the base alone, although there is an adapter.
        dtype: type of the weights.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    model: str
    adapter: str | None = None
    detached: bool = False
    base: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"
