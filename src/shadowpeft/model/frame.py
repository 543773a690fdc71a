"""The state of one forward pass, and the blocks that pass it on. No module keeps it."""

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
from shadowpeft.decoder.whole_rows import WholeRowsBlock
from shadowpeft.ops.choice import Boundary
from shadowpeft.shadow.adapter import Adapter


@dataclass
class ShadowFrame:
    """One forward pass.

    Attributes:
        adapter: the adapter it runs under.
        boundary: computes the boundaries.
        state_BTD: the shadow state s; advanced at each boundary.
        family: the base's family.
        embeddings_train: whether anything below the first correction needs a gradient, such as embeddings of
            the caller.
        rows_are_whole: whether this is a compiled graph over whole rows (see `decoder/whole_rows.py`).
        crossed: how many boundaries have been crossed.
    """

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
            # `enable_input_require_grads`, which checkpointing calls on a base, gives frozen embeddings a
            # gradient. Cut it, or autograd would keep every block below the first correction.
            h_BTD = h_BTD.detach()
        adapter, norm = self.adapter, arch.input_norm_of(block, self.family)
        if adapter.gradient_checkpointing and adapter.training:
            enter = partial(adapter.enter, index, norm=norm, boundary=self.boundary)
            h_BTD, self.state_BTD = checkpoint(enter, h_BTD, self.state_BTD, use_reentrant=False)
        else:
            h_BTD, self.state_BTD = adapter.enter(index, h_BTD, self.state_BTD, norm, self.boundary)
        return h_BTD


# For the families whose decoder drops unknown keyword arguments (`Family.passes_kwargs`). A context variable
# is safe with threads, but torch.compile(fullgraph=True) cannot trace it.
_frame_of_context: ContextVar[ShadowFrame] = ContextVar("shadow_frame")


@contextmanager
def frame_in_context(frame: ShadowFrame) -> Iterator[None]:
    """Make the frame available, within the context, to a decoder that drops keyword arguments."""
    token = _frame_of_context.set(frame)
    try:
        yield
    finally:
        _frame_of_context.reset(token)


class ShadowedBlock:
    """A wrapper of one of a decoder's blocks: it crosses the boundary, then runs the block unchanged.

    The boundary is crossed outside the block's own call, so gradient checkpointing recomputes each of them
    alone.
    """

    def __init__(self, blocks: nn.ModuleList, index: int, config: PretrainedConfig) -> None:
        self.blocks, self.index = blocks, index
        self._name = str(index)
        self.for_whole_rows = WholeRowsBlock(blocks, index, config)
        vars(self).update(arch.attributes_of(blocks[index], config))

    def __call__(
        self, h_BTD: Tensor, *args: Any, shadow_frame: ShadowFrame | None = None, **kwargs: Any
    ) -> Any:
        """Run the block on the corrected input; all other arguments are passed on unchanged."""
        frame = shadow_frame
        if frame is None:
            frame = _frame_of_context.get()
        # As `nn.ModuleList` finds it; its brackets take the host ten times as long.
        block = self.blocks._modules[self._name]
        assert block is not None
        h_BTD = frame.enter(self.index, block, h_BTD)
        if frame.rows_are_whole:
            return self.for_whole_rows(h_BTD, *args, **kwargs)
        return block(h_BTD, *args, **kwargs)
