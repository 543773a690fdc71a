"""Allocate what the fused kernels write, size their grids, and launch them in order."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from shadowpeft.ops import triton_backward as back
from shadowpeft.ops import triton_forward as fore
from shadowpeft.ops.triton_parts import STATS, Tile, splits_for, tile_of


class Weights(NamedTuple):
    """The tensors of a boundary beside h and s: T, G, W_down, W_up, and the norm that is read through."""

    tin: Tensor | None
    tin_b: Tensor | None
    tout: Tensor | None
    tout_b: Tensor | None
    gin: Tensor | None
    gin_b: Tensor | None
    gout: Tensor | None
    gout_b: Tensor | None
    down: Tensor | None
    up: Tensor | None
    norm_w: Tensor | None
    norm_b: Tensor | None

    def trained(self, variant: str) -> list[Tensor]:
        """Return those that get a gradient: all there are, but for a block's own norm."""
        return [weight for weight in (self if variant == "paper" else self[:10]) if weight is not None]

    def contiguous(self) -> "Weights":
        """Return them laid out as the kernels read them."""
        return Weights(*(None if weight is None else weight.contiguous() for weight in self))


class Numbers(NamedTuple):
    """What varies without a kernel being compiled anew."""

    alpha: float
    dropout: float
    gate_shift: float
    eps: float


class Case(NamedTuple):
    """What kernels are compiled for: sizes, padded sizes, and the branches taken."""

    D: int
    U: int
    R: int
    UP: int
    RP: int
    NORM: int
    OFFSET: float
    UNIT: bool
    UPDATE: bool
    INJECT: bool
    DOWN: bool
    GELU: bool
    BIAS: bool
    DROP: int
    FINE: int

    def pick(self, names: str) -> dict[str, Any]:
        """Return the named fields, as a kernel takes them."""
        fields = self._asdict()
        return {name: fields[name] for name in names.split()}


_NORMS = {"none": 0, "rms": 1, "layer": 2}
_DROPS = {"normed": 1, "paper": 1, "peft": 2}


def case_of(h: Tensor, w: Weights, variant: str, norm: str, activation: str, dropout: float, offset: float) -> Case:
    """Tell which kernels a boundary needs."""
    U, R = 0 if w.tin is None else w.tin.shape[0], 0 if w.down is None else w.down.shape[0]
    UP, RP = (max(16, triton.next_power_of_2(size)) for size in (U, R))
    drop = _DROPS[variant] if dropout > 0 else 0
    unit, update, inject, bias = variant == "normed", w.tin is not None, w.down is not None, w.tin_b is not None
    down = inject and drop != 2  # else the difference h - s is dropped out before W_down, and cannot be multiplied by it in parts
    # Where T and G meet h as it is, a large row's gate opens by a sum of numbers in the hundreds, of which a bfloat16 keeps no digit behind
    # the point, and such rows are most of G's gradient: so there G's hidden values are two bfloat16 each. Weights that are rounded, too,
    # on their way to a product (float32 beside a bfloat16 stream) cost as many digits again; then it would gain nothing.
    exact = w.gin is not None and w.gout is not None and w.gin.dtype == w.gout.dtype == h.dtype == torch.bfloat16
    fine = int(exact and not unit and norm == "none")
    return Case(h.shape[-1], U, R, UP, RP, _NORMS[norm], offset, unit, update, inject, down, activation == "gelu", bias, drop, fine)


def kept_widths(tin: Tensor | None, down: Tensor | None) -> tuple[int, int]:
    """How many numbers are kept for each row, and how many for all rows together under a LayerNorm."""
    U, R = 0 if tin is None else tin.shape[0], 0 if down is None else down.shape[0]
    return 2 * R + STATS + 2 * U, 2 * R + 3 + 4 * U


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device that holds the tensors, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _by_rows(name: str, h: Tensor, case: Case, rows: int) -> tuple[Tile, tuple[int, int], int]:
    """Tile, grid of (blocks of rows, splits of the columns) and columns of a split."""
    tile = tile_of(name, h.dtype, rows, max(case.UP, case.RP))
    blocks, strips = triton.cdiv(rows, tile.rows), triton.cdiv(case.D, tile.cols)
    splits = splits_for(blocks, strips, h.device)
    return tile, (blocks, splits), triton.cdiv(strips, splits) * tile.cols


def _by_columns(name: str, h: Tensor, case: Case, rows: int, parts: int) -> tuple[Tile, tuple[int, int], int]:
    """Tile, grid of (strips of columns, parts of the rows) and rows of a part."""
    tile = tile_of(name, h.dtype, rows, max(case.UP, case.RP))
    return tile, (triton.cdiv(case.D, tile.cols), parts), triton.cdiv(triton.cdiv(rows, tile.rows), parts) * tile.rows


def _shape(tile: Tile) -> dict[str, int]:
    limit = {"maxnreg": tile.registers} if tile.registers else {}
    return {"BM": tile.rows, "BD": tile.cols, "STAGES": tile.stages, "num_warps": tile.warps, **limit}


def run_forward(case: Case, h: Tensor, s: Tensor, w: Weights, seed: Tensor | None, n: Numbers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return h' (empty without an injection), s' (empty without an update), and what is kept for each row and for all rows."""
    h, s, w = h.contiguous(), s.contiguous(), w.contiguous()
    rows = h.numel() // case.D
    out = torch.empty_like(h) if case.INJECT else h.new_empty(0)
    moved = torch.empty_like(s) if case.UPDATE else s.new_empty(0)
    kept_width, shared_width = kept_widths(w.tin, w.down)
    kept = h.new_empty(rows, kept_width, dtype=torch.float32)
    shared = h.new_empty(shared_width if case.NORM == 2 else 0, dtype=torch.float32)
    if not rows:
        return out, moved, kept, shared
    with _on(h.device):
        tile, grid, span = _by_rows("project", h, case, rows)
        splits = grid[1]
        part = h.new_empty(splits, rows, case.R + STATS + 2 * case.U, dtype=torch.float32)
        part_shared = h.new_empty(splits, shared.numel(), dtype=torch.float32)
        if case.UPDATE or case.DOWN:
            fore.project[grid](
                h, w.norm_w, w.norm_b, w.tin, w.gin, w.down, part, part_shared, rows, span,
                **case.pick("D U R UP RP NORM OFFSET UNIT UPDATE DOWN"), **_shape(tile),
            )  # fmt: skip
        tile, grid, span = _by_rows("advance", h, case, rows)
        wide = triton.next_power_of_2(shared_width)
        state = h.new_empty(grid[1], rows, case.R, dtype=torch.float32)
        fore.advance[grid](
            h, s, w.tin_b, w.tout, w.tout_b, w.gin_b, w.gout, w.gout_b, w.down, part, part_shared, seed,
            moved, state, kept, shared, rows, span, n.eps, n.gate_shift, n.dropout,
            **case.pick("D U R UP RP NORM UNIT UPDATE INJECT DOWN GELU BIAS DROP FINE"), S=splits, SP=wide, **_shape(tile),
        )  # fmt: skip
        if case.INJECT:
            splits = grid[1]
            tile, grid, span = _by_rows("inject", h, case, rows)
            fore.inject[grid](
                h, w.up, state, seed, kept, out, rows, span, n.alpha, n.dropout,
                **case.pick("D U R RP UNIT DROP"), S=splits, **_shape(tile),
            )  # fmt: skip
    return out, moved, kept, shared


def run_backward(
    case: Case, dout: Tensor | None, dnext: Tensor | None, h: Tensor, s: Tensor, kept: Tensor, shared: Tensor,
    w: Weights, seed: Tensor | None, n: Numbers, wanted: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of h (empty unless `wanted`), of s and of the trained weights, in order."""
    variant = "normed" if case.UNIT else "paper"
    w, h, s = w.contiguous(), h.contiguous(), s.contiguous()
    dout, dnext = (None if grad is None else grad.contiguous() for grad in (dout, dnext))
    rows, kind = h.numel() // case.D, h.dtype
    dh, ds = torch.empty_like(h) if wanted else h.new_empty(0), torch.empty_like(s)
    dw = Weights(*(None if weight is None else torch.empty_like(weight) for weight in w))
    if not rows:
        return [dh, ds, *(torch.zeros_like(weight) for weight in w.trained(variant))]
    dq, low = h.new_empty(rows, case.R), h.new_empty(rows, case.R)
    act, dz = h.new_empty(rows, (2 + case.FINE) * case.U), h.new_empty(rows, 2 * case.U)
    dsize, coef = h.new_empty(rows, dtype=torch.float32), h.new_empty(rows, 3, dtype=torch.float32)
    with _on(h.device):
        part, splits = None, 1
        if case.INJECT:
            tile, grid, span = _by_rows("pull", h, case, rows)
            splits = grid[1]
            part = h.new_empty(splits, rows, case.R, dtype=torch.float32)
            back.pull[grid](dout, w.up, part, rows, span, **case.pick("D R RP"), **_shape(tile))
        settle = tile_of("settle", kind, rows, 16)
        blocks = (triton.cdiv(rows, settle.rows),)
        back.settle_low[blocks](
            part, kept, seed, dq, low, act, dsize, rows, n.alpha, n.dropout,
            **case.pick("U R UP RP UNIT UPDATE INJECT GELU DROP FINE"), S=splits, BM=settle.rows, num_warps=settle.warps,
        )  # fmt: skip

        name = "retreat" if case.INJECT else "retreat_only"
        tile, (strips, _), _ = _by_columns(name, h, case, rows, 1)
        parts = splits_for(strips, triton.cdiv(rows, tile.rows), h.device)
        tile, grid, span = _by_columns(name, h, case, rows, parts)
        hidden = h.new_empty(strips, rows, 2 * case.U, dtype=torch.float32)
        grads = h.new_empty(parts, 4 * case.U + 3 * case.R + 4, case.D, dtype=torch.float32)
        back.retreat[grid](
            dnext, h, s, dq, act, w.tout, w.tout_b, w.gout, w.gout_b, w.down, seed,
            ds, hidden, grads, rows, span, n.gate_shift, n.dropout,
            **case.pick("D U R UP RP UPDATE INJECT BIAS DROP FINE"), NEXT=dnext is not None, **_shape(tile),
        )  # fmt: skip
        back.settle_read[blocks](
            hidden, kept, shared, seed, dq, dz, coef, rows, strips, n.dropout,
            **case.pick("D U R UP RP NORM UNIT UPDATE INJECT GELU DROP"), BM=settle.rows, num_warps=settle.warps,
        )  # fmt: skip
        tile, grid, span = _by_columns("finish", h, case, rows, parts)
        back.finish[grid](
            dout, h, w.norm_w, w.norm_b, dq, low, dz, dsize, kept, coef, w.tin, w.gin, w.down, seed,
            dh, grads, rows, span, n.dropout,
            **case.pick("D U R UP RP NORM OFFSET UNIT UPDATE INJECT DROP"), WANTED=wanted, **_shape(tile),
        )  # fmt: skip
        tile = tile_of("gather", kind, rows, 16)
        learned = case.NORM == 2 and not case.UNIT
        back.gather[(triton.cdiv(case.D, tile.cols), 7 if learned or case.BIAS else 6 if case.UPDATE else 2)](
            grads, dw.down, dw.up, dw.norm_w, dw.norm_b, dw.tin, dw.tout, dw.tout_b, dw.gin, dw.gout, dw.gout_b,
            **case.pick("D U R UPDATE INJECT BIAS"), LEARNED=learned, PARTS=parts, BK=tile.rows, BD=tile.cols, num_warps=tile.warps,
        )  # fmt: skip
    if dw.tin_b is not None and dw.gin_b is not None:
        sums = dz.sum(0, dtype=torch.float32)
        dw.tin_b.copy_(sums[: case.U])
        dw.gin_b.copy_(sums[case.U :])
    return [dh, ds, *dw.trained(variant)]
