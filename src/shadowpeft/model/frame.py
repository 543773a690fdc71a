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
from shadowpeft.decoder.whole_rows import UnmaskedBlock
from shadowpeft.ops.choice import Boundary
from shadowpeft.shadow.adapter import Adapter


@dataclass
class ShadowFrame:
    """One forward pass: the adapter it runs under, what computes its boundaries, the shadow state s, shape (B, T, D), the base's family,
    whether anything below the first correction wants a gradient (embeddings of the caller's, say), whether this is a compiled graph over
    whole rows (see `unmasked.py`), and how many boundaries were crossed."""

    adapter: Adapter
    boundary: Boundary
    state_BTD: Tensor
    family: arch.Family
    embeddings_train: bool
    rows_are_whole: bool = False
    crossed: int = 0

    def enter(self, index: int, block: nn.Module, h_BTD: Tensor) -> Tensor:
        """Advance the state to the boundary before `block` and return the block's corrected input."""
        self.crossed += 1
        if index == 0 and not self.embeddings_train:
            # `enable_input_require_grads`, which checkpointing puts on a base, gives frozen embeddings a gradient; cut it, or autograd
            # would keep every block below the first correction.
            h_BTD = h_BTD.detach()
        enter = partial(
            self.adapter.enter, index, norm=arch.input_norm_of(block, self.family), boundary=self.boundary
        )
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
    """

    def __init__(self, blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> None:
        self.blocks, self.index, self.unmasked = blocks, index, UnmaskedBlock(blocks, index, config)

    def __call__(
        self, h_BTD: Tensor, *args: Any, shadow_frame: ShadowFrame | None = None, **kwargs: Any
    ) -> Any:
        """Run the block on the corrected input; everything else is handed through untouched."""
        frame = shadow_frame if shadow_frame is not None else _travelling.get()
        block = self.blocks[self.index]
        h_BTD = frame.enter(self.index, block, h_BTD)
        return (self.unmasked if frame.rows_are_whole else block)(h_BTD, *args, **kwargs)
