"""The state of one forward pass, and the blocks that hand it on. The frame travels as an argument; no module keeps it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from shadowpeft import arch
from shadowpeft.adapter import Adapter
from shadowpeft.ops.choice import Boundary


@dataclass
class ShadowFrame:
    """One forward pass: the adapter it runs under, what computes its boundaries, the shadow state s, shape (B, T, D), the base's family,
    whether anything below the first correction wants a gradient (embeddings of the caller's, say), whether the rows are whole documents
    in a compiled graph (see `ShadowedBlock`), and how many boundaries were crossed."""

    adapter: Adapter
    boundary: Boundary
    state_BTD: Tensor
    family: arch.Family
    embeddings_train: bool
    unmasked: bool = False
    crossed: int = 0

    def enter(self, index: int, block: nn.Module, h_BTD: Tensor) -> Tensor:
        """Advance the state to the boundary before `block` and return the block's corrected input."""
        self.crossed += 1
        if index == 0 and not self.embeddings_train:
            # `enable_input_require_grads`, which checkpointing puts on a base, gives frozen embeddings a gradient; cut it, or autograd
            # would keep every block below the first correction.
            h_BTD = h_BTD.detach()
        enter = partial(self.adapter.enter, index, norm=arch.input_norm_of(block, self.family), boundary=self.boundary)
        if self.adapter.gradient_checkpointing and self.adapter.training:
            h_BTD, self.state_BTD = checkpoint(enter, h_BTD, self.state_BTD, use_reentrant=False)
        else:
            h_BTD, self.state_BTD = enter(h_BTD, self.state_BTD)
        return h_BTD


# For the families whose decoder drops unknown keyword arguments (`Family.passes_kwargs`). A context variable is safe
# from threads; the price is that torch.compile(fullgraph=True) cannot trace it.
_travelling: ContextVar[ShadowFrame] = ContextVar("shadow_frame")


@contextmanager
def travelling(frame: ShadowFrame) -> Iterator[None]:
    """Let the blocks of a decoder that drops keyword arguments find the frame while the context lasts."""
    token = _travelling.set(frame)
    try:
        yield
    finally:
        _travelling.reset(token)


class ShadowedBlock:
    """Stand in a view of the decoder for one of its blocks: cross the boundary, then run the block as it is.

    The boundary is crossed outside the block's own call, so gradient checkpointing recomputes either of them alone.

    A decoder that is compiled cannot look at its inputs, so transformers makes a mask even where eager it finds that there is nothing to
    mask; with one, attention is not flash attention and takes four times as long. Where the caller gave neither mask, positions nor
    cache, the block is given none.
    """

    def __init__(self, blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> None:
        self.blocks, self.index, self.config = blocks, index, config

    def __call__(self, h_BTD: Tensor, *args: Any, shadow_frame: ShadowFrame | None = None, **kwargs: Any) -> Any:
        """Run the block on the corrected input; everything else is handed through untouched."""
        frame = shadow_frame if shadow_frame is not None else _travelling.get()
        block = self.blocks[self.index]
        if frame.unmasked and arch.needs_no_mask(self.config, self.index, h_BTD.shape[1]):
            kwargs["attention_mask"] = None
        return block(frame.enter(self.index, block, h_BTD), *args, **kwargs)


class ShadowedBlocks:
    """Give the list of shadowed blocks of a decoder, in order."""

    def __init__(self, blocks: nn.ModuleList, config: PretrainedConfig) -> None:
        self.blocks = blocks
        self.shadowed = [ShadowedBlock(blocks, index, config) for index in range(len(blocks))]

    def __call__(self) -> list[ShadowedBlock]:
        """Return the list."""
        return self.shadowed
