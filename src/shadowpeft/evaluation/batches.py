"""Rows of token ids as padded batches of similar length."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def like_lengths(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of rows in batches, the shortest rows first, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def padded(rows: Sequence[list[int]], pad: int, side: str) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids on the `left` or `right`.

    Returns:
        The ids and the attention mask, (B, T) each.
    """
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    if side == "left":
        ids_BT = [[pad] * gap + row for gap, row in zip(gaps, rows, strict=True)]
        mask_BT = [[0] * gap + [1] * (width - gap) for gap in gaps]
    else:
        ids_BT = [row + [pad] * gap for gap, row in zip(gaps, rows, strict=True)]
        mask_BT = [[1] * (width - gap) + [0] * gap for gap in gaps]
    return torch.tensor(ids_BT), torch.tensor(mask_BT)
