"""Allocate what the fused kernels write, and launch them in order by a plan that is made once for a kind of boundary."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from shadowpeft.ops.triton import backward as back
from shadowpeft.ops.triton import forward as fore
from shadowpeft.ops.triton.call import Call, kinds_of
from shadowpeft.ops.triton.case import Case, Numbers, Weights, kept_widths, power_of_2
from shadowpeft.ops.triton.parts import STATS, Tile, splits_for, tile_of

# Plans kept at once: one for each number of rows (batches are padded to many), and forward and backward apart. Some kilobytes each.
_PLANS = 1024


class Step(NamedTuple):
    """One launch: the kernel's call, how many columns or rows a program goes over, and the grid's second side."""

    call: Call
    span: int
    splits: int


class ForwardPlan(NamedTuple):
    """The launches of the forward pass; those left out that a boundary does not need."""

    project: Step | None
    parts: int
    advance: Step
    inject: Step | None


class BackwardPlan(NamedTuple):
    """The launches of the backward pass, and the numbers of strips and parts the sums are written in."""

    pull: Step | None
    settle_low: Call
    retreat: Step
    settle_read: Call
    finish: Step
    gather: Call
    strips: int
    parts: int


def _shape(tile: Tile) -> dict[str, int]:
    return {"BM": tile.rows, "BD": tile.cols, "STAGES": tile.stages}


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, **({"maxnreg": tile.registers} if tile.registers else {})}


class _Planner(NamedTuple):
    """What a plan is made from."""

    case: Case
    rows: int
    kind: torch.dtype
    device: torch.device

    def tile(self, name: str) -> Tile:
        return tile_of(name, self.kind, self.rows, max(self.case.UP, self.case.RP))

    def by_rows(self, name: str, kernel: Any, fields: str, **constants: Any) -> Step:
        """A grid of (blocks of rows, splits of the columns)."""
        tile = self.tile(name)
        blocks, strips = cdiv(self.rows, tile.rows), cdiv(self.case.D, tile.cols)
        splits = splits_for(blocks, strips, self.device)
        call = Call(
            kernel,
            (blocks, splits),
            {**self.case.pick(fields), **constants, **_shape(tile)},
            **_options(tile),
        )
        return Step(call, cdiv(strips, splits) * tile.cols, splits)

    def by_columns(self, name: str, kernel: Any, fields: str, parts: int, **constants: Any) -> Step:
        """A grid of (strips of columns, parts of the rows)."""
        tile = self.tile(name)
        grid = cdiv(self.case.D, tile.cols), parts
        call = Call(kernel, grid, {**self.case.pick(fields), **constants, **_shape(tile)}, **_options(tile))
        return Step(call, cdiv(cdiv(self.rows, tile.rows), parts) * tile.rows, parts)


@lru_cache(_PLANS)
def _forward_plan(
    case: Case, rows: int, kind: torch.dtype, device: torch.device, kinds: tuple[object, ...]
) -> ForwardPlan:
    """Settle the forward pass for boundaries whose tensors are of these `kinds`."""
    plan = _Planner(case, rows, kind, device)
    # The sums over h are in as many parts as `project` splits the columns, whether it is needed or not.
    project = plan.by_rows("project", fore.project, "D U R UP RP NORM OFFSET UNIT UPDATE DOWN")
    wide = power_of_2(2 * case.R + 3 + 4 * case.U)
    fields = "D U R UP RP NORM UNIT UPDATE INJECT DOWN GELU BIAS DROP FINE"
    advance = plan.by_rows("advance", fore.advance, fields, S=project.splits, SP=wide)
    inject = plan.by_rows("inject", fore.inject, "D U R RP UNIT DROP", S=advance.splits)
    return ForwardPlan(
        project if case.UPDATE or case.DOWN else None,
        project.splits,
        advance,
        inject if case.INJECT else None,
    )


@lru_cache(_PLANS)
def _backward_plan(
    case: Case,
    rows: int,
    kind: torch.dtype,
    device: torch.device,
    kinds: tuple[object, ...],
    follows: bool,
    wanted: bool,
) -> BackwardPlan:
    """Settle the backward pass: `follows` if s' was read, `wanted` if h gets a gradient."""
    plan = _Planner(case, rows, kind, device)
    pull = plan.by_rows("pull", back.pull, "D R RP") if case.INJECT else None
    settle = tile_of("settle", kind, rows, 16)
    blocks, options = (cdiv(rows, settle.rows),), {"num_warps": settle.warps}
    fields = "U R UP RP UNIT UPDATE INJECT GELU DROP FINE"
    settle_low = Call(
        back.settle_low,
        blocks,
        {**case.pick(fields), "S": pull.splits if pull else 1, "BM": settle.rows},
        **options,
    )
    fields = "D U R UP RP NORM UNIT UPDATE INJECT GELU DROP"
    settle_read = Call(back.settle_read, blocks, {**case.pick(fields), "BM": settle.rows}, **options)

    name = "retreat" if case.INJECT else "retreat_only"
    tile = plan.tile(name)
    strips = cdiv(case.D, tile.cols)
    parts = splits_for(strips, cdiv(rows, tile.rows), device)
    retreat = plan.by_columns(
        name, back.retreat, "D U R UP RP UPDATE INJECT BIAS DROP FINE", parts, NEXT=follows
    )
    finish = plan.by_columns(
        "finish", back.finish, "D U R UP RP NORM OFFSET UNIT UPDATE INJECT DROP", parts, WANTED=wanted
    )

    tile, learned = tile_of("gather", kind, rows, 16), case.NORM == 2 and not case.UNIT
    weights = 7 if learned or case.BIAS else 6 if case.UPDATE else 2
    constants = {
        **case.pick("D U R UPDATE INJECT BIAS"),
        "LEARNED": learned,
        "PARTS": parts,
        "BK": tile.rows,
        "BD": tile.cols,
    }
    gather = Call(back.gather, (cdiv(case.D, tile.cols), weights), constants, num_warps=tile.warps)
    return BackwardPlan(pull, settle_low, retreat, settle_read, finish, gather, strips, parts)


def forget_plans() -> None:
    """Make plans anew: after a change of `triton_parts.TILES`."""
    _forward_plan.cache_clear()
    _backward_plan.cache_clear()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device that holds the tensors, whichever is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def run_forward(
    case: Case, h: Tensor, s: Tensor, w: Weights, seed: Tensor | None, n: Numbers
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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
        plan = _forward_plan(case, rows, h.dtype, h.device, kinds_of((h, s, *w, seed)))
        part = h.new_empty(plan.parts, rows, case.R + STATS + 2 * case.U, dtype=torch.float32)
        part_shared = h.new_empty(plan.parts, shared.numel(), dtype=torch.float32)
        if plan.project is not None:
            plan.project.call(
                h, w.norm_w, w.norm_b, w.tin, w.gin, w.down, part, part_shared, rows, plan.project.span
            )
        state = h.new_empty(plan.advance.splits, rows, case.R, dtype=torch.float32)
        plan.advance.call(
            h, s, w.tin_b, w.tout, w.tout_b, w.gin_b, w.gout, w.gout_b, w.down, part, part_shared, seed,
            moved, state, kept, shared, rows, plan.advance.span, n.eps, n.gate_shift, n.dropout,
        )  # fmt: skip
        if plan.inject is not None:
            plan.inject.call(h, w.up, state, seed, kept, out, rows, plan.inject.span, n.alpha, n.dropout)
    return out, moved, kept, shared


def run_backward(
    case: Case, dout: Tensor | None, dnext: Tensor | None, h: Tensor, s: Tensor, kept: Tensor, shared: Tensor,
    w: Weights, seed: Tensor | None, n: Numbers, wanted: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of h (empty unless `wanted`), of s and of the trained weights, in order."""
    variant = "normed" if case.UNIT else "paper"
    w, h, s = w.contiguous(), h.contiguous(), s.contiguous()
    dout, dnext = (None if grad is None else grad.contiguous() for grad in (dout, dnext))
    rows = h.numel() // case.D
    dh, ds = torch.empty_like(h) if wanted else h.new_empty(0), torch.empty_like(s)
    dw = Weights(*_like(w if variant == "paper" else w[:10]), *(() if variant == "paper" else (None, None)))
    if not rows:
        return [dh, ds, *(grad.zero_() for grad in dw.trained(variant))]
    dq, low = h.new_empty(rows, case.R), h.new_empty(rows, case.R)
    act, dz = h.new_empty(rows, (2 + case.FINE) * case.U), h.new_empty(rows, 2 * case.U)
    dsize, coef = h.new_empty(rows, dtype=torch.float32), h.new_empty(rows, 3, dtype=torch.float32)
    with _on(h.device):
        kinds = kinds_of((h, s, dout, dnext, kept, shared, *w, seed))
        plan = _backward_plan(case, rows, h.dtype, h.device, kinds, dnext is not None, wanted)
        part = None
        if plan.pull is not None:
            part = h.new_empty(plan.pull.splits, rows, case.R, dtype=torch.float32)
            plan.pull.call(dout, w.up, part, rows, plan.pull.span)
        plan.settle_low(part, kept, seed, dq, low, act, dsize, rows, n.alpha, n.dropout)
        hidden = h.new_empty(plan.strips, rows, 2 * case.U, dtype=torch.float32)
        grads = h.new_empty(plan.parts, 4 * case.U + 3 * case.R + 4, case.D, dtype=torch.float32)
        plan.retreat.call(
            dnext, h, s, dq, act, w.tout, w.tout_b, w.gout, w.gout_b, w.down, seed,
            ds, hidden, grads, rows, plan.retreat.span, n.gate_shift, n.dropout,
        )  # fmt: skip
        plan.settle_read(hidden, kept, shared, seed, dq, dz, coef, rows, plan.strips, n.dropout)
        plan.finish.call(
            dout, h, w.norm_w, w.norm_b, dq, low, dz, dsize, kept, coef, w.tin, w.gin, w.down, seed,
            dh, grads, rows, plan.finish.span, n.dropout,
        )  # fmt: skip
        plan.gather(
            grads,
            dw.down,
            dw.up,
            dw.norm_w,
            dw.norm_b,
            dw.tin,
            dw.tout,
            dw.tout_b,
            dw.gin,
            dw.gout,
            dw.gout_b,
        )
    if dw.tin_b is not None and dw.gin_b is not None:
        sums = dz.sum(0, dtype=torch.float32)
        dw.tin_b.copy_(sums[: case.U])
        dw.gin_b.copy_(sums[case.U :])
    return [dh, ds, *dw.trained(variant)]


def _like(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Allocate one tensor for each there is."""
    return [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]
