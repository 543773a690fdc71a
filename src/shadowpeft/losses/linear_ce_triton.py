"""From logits to each token's loss and its derivative in one kernel.

It reads the logits twice, the second time mostly from the cache, and writes once. Plain torch writes log
softmax in float32 and reads it again: three times the bytes. Shape legend: n tokens at hand, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _WARPS = 4096, 8
# Stands for minus infinity where nothing was read: the difference of two infinities would not be a number.
_LOWEST = tl.constexpr(-3.0e38)


def loss_and_derivative(logits_nV: Tensor, y_n: Tensor) -> Tensor:
    """Compute -log softmax(z)[y] of each token, and its derivative by the logits, softmax(z) - 1_y.

    Args:
        logits_nV: contiguous, on a GPU or under Triton's interpreter; overwritten by the derivative.
        y_n: each token's target.

    Returns:
        One loss a token, (n,), in float32.
    """
    n, width = logits_nV.shape
    loss_n = torch.empty(n, device=logits_nV.device, dtype=torch.float32)
    if n:
        _rows[(n,)](logits_nV, y_n, loss_n, V=width, COLUMNS=_COLUMNS, num_warps=_WARPS)
    return loss_n


@triton.jit
def _rows(logits, targets, losses, V: tl.constexpr, COLUMNS: tl.constexpr):
    """Compute one row a program. Largest value and sum are kept lane by lane, and joined at the end."""
    row = tl.program_id(0).to(tl.int64)
    z = logits + row * V
    y = tl.load(targets + row)
    # Read here, before the sums make all warps wait: after them another warp may have put its derivative
    # there.
    z_y = tl.load(z + y).to(tl.float32)
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
        derivative = tl.exp(x - top - log_total) - tl.where(cols == y, 1.0, 0.0)
        tl.store(z + cols, derivative.to(logits.dtype.element_ty), mask=cols < V)
