"""From logits to each token's loss and its slope in one kernel: two readings, the second mostly from the cache, and one writing.

Plain torch writes log softmax in float32 and reads it again, three times the bytes. Shapes in names: n tokens in hand, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _WARPS = 4096, 8
# Stands for minus infinity where nothing was read: the difference of two infinities would not be a number.
_LOWEST = tl.constexpr(-3.0e38)


def loss_and_slope(logits_nV: Tensor, y_n: Tensor) -> Tensor:
    """Compute -log softmax(z)[y] of each row, (n,) in float32, and put its derivative, softmax(z) - 1_y, where the logits were.

    Args:
        logits_nV: contiguous, on a GPU or under Triton's interpreter; overwritten.
        y_n: a class for each row.
    """
    n, width = logits_nV.shape
    loss_n = torch.empty(n, device=logits_nV.device, dtype=torch.float32)
    if n:
        _rows[(n,)](logits_nV, y_n, loss_n, V=width, COLUMNS=_COLUMNS, num_warps=_WARPS)
    return loss_n


@triton.jit
def _rows(logits, targets, losses, V: tl.constexpr, COLUMNS: tl.constexpr):
    """One row a program. The largest value and the sum are kept lane by lane, and joined at the end of the row."""
    row = tl.program_id(0).to(tl.int64)
    z = logits + row * V
    y = tl.load(targets + row)
    z_y = tl.load(z + y).to(
        tl.float32
    )  # here, before the sums make all warps wait: below it, another warp may have put its slope there
    lanes = tl.arange(0, COLUMNS)
    largest = tl.full((COLUMNS,), _LOWEST, tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in tl.range(0, V, COLUMNS):
        x = tl.load(z + start + lanes, mask=start + lanes < V, other=_LOWEST).to(tl.float32)
        new = tl.maximum(largest, x)
        total = total * tl.exp(largest - new) + tl.exp(x - new)
        largest = new
    top = tl.max(largest, axis=0)
    log_total = tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    tl.store(losses + row, log_total + (top - z_y))
    for start in tl.range(0, V, COLUMNS):
        cols = start + lanes
        x = tl.load(z + cols, mask=cols < V, other=_LOWEST).to(tl.float32)
        slope = tl.exp(x - top - log_total) - tl.where(cols == y, 1.0, 0.0)
        tl.store(z + cols, slope.to(logits.dtype.element_ty), mask=cols < V)
