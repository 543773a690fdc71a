"""Whole rows: each is one document without padding, and in a compiled graph needs no mask.

A compiled graph cannot look at the values of its inputs, so transformers builds an attention mask there even
where it would find, without compilation, that there is nothing to mask. With a mask, attention is not flash
attention and takes four times as long.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from shadowpeft import arch


def rows_are_whole(*given: object) -> bool:
    """Return whether this is a compiled graph in which each row is one document without padding.

    Args:
        *given: all that a caller may give a decoder beside its ids or embeddings (mask, positions, cache and
            more), `None` where not given.
    """
    return torch.compiler.is_compiling() and all(value is None for value in given)


class WholeRowsBlock:
    """A wrapper of a block for whole rows: it drops the mask where the block is right without one."""

    def __init__(self, blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> None:
        self.blocks, self.index, self.config = blocks, index, config
        vars(self).update(arch.attributes_of(blocks[index], config))

    def __call__(self, h_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the block; all arguments but the mask are passed on unchanged."""
        if arch.needs_no_mask(self.config, self.index, h_BTD.shape[1]):
            kwargs["attention_mask"] = None
        return self.blocks[self.index](h_BTD, *args, **kwargs)
