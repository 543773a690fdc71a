"""Whole rows in a compiled graph go without an attention mask.

What is compiled cannot look at its inputs, so transformers makes a mask even where eager it finds that there is nothing to mask; with
one, attention is not flash attention and takes four times as long.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from shadowpeft import arch


def rows_are_whole(*told: object) -> bool:
    """Tell, in a graph that is compiled, whether each row is one document without padding.

    Args:
        *told: all that a caller may give a decoder beside its ids or embeddings (mask, positions, cache and more), `None` where not given.
    """
    return torch.compiler.is_compiling() and all(value is None for value in told)


class UnmaskedBlock:
    """Stand in a view of a decoder for one of its blocks, over whole rows: run it without a mask where it is right without one."""

    def __init__(self, blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> None:
        self.blocks, self.index, self.config = blocks, index, config

    def __call__(self, h_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block; everything but the mask is handed through untouched."""
        if arch.needs_no_mask(self.config, self.index, h_BTD.shape[1]):
            kwargs["attention_mask"] = None
        return self.blocks[self.index](h_BTD, *args, **kwargs)
