"""Allocate what the fused kernels write, and launch them in order.

The plan of the launches is made once for each kind of boundary and kept.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from shadowpeft.ops.triton import backward as back
from shadowpeft.ops.triton import forward as fore
from shadowpeft.ops.triton import launch_few
from shadowpeft.ops.triton.call import PLANS, Call, kinds_of, on, result
from shadowpeft.ops.triton.case import (
    Arguments,
    BackwardArguments,
    Case,
    Weights,
    kept_widths,
    power_of_2,
)
from shadowpeft.ops.triton.parts import STATS, Tile, splits_for, tile_of


class Step(NamedTuple):
    """One launch: the call, how many columns or rows a program goes over, and the second side of the grid."""

    call: Call
    span: int
    splits: int


class ForwardPlan(NamedTuple):
    """The launches of the forward pass; `None` for one that a boundary does not need."""

    project: Step | None
    parts: int
    advance: Step
    inject: Step | None


class BackwardPlan(NamedTuple):
    """The launches of the backward pass, and in how many strips and parts the sums are written."""

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
    options = {"num_warps": tile.warps}
    if tile.registers:
        options["maxnreg"] = tile.registers
    return options


class _Planner(NamedTuple):
    """What a plan is made from: the case, the number of rows, the stream's type and the device."""

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


@lru_cache(PLANS)
def _forward_plan(
    case: Case, rows: int, kind: torch.dtype, device: torch.device, kinds: tuple[object, ...]
) -> ForwardPlan:
    """Plan the forward pass of boundaries whose tensors are of these `kinds`."""
    plan = _Planner(case, rows, kind, device)
    # The sums over h are in as many parts as `project` splits the columns, whether it is needed or not.
    project = plan.by_rows("project", fore.project, "D U R UP RP NORM OFFSET UNIT UPDATE DOWN")
    wide = power_of_2(2 * case.R + 3 + 4 * case.U)
    fields = "D U R UP RP NORM UNIT UPDATE INJECT DOWN GELU BIAS DROP FINE"
    advance = plan.by_rows("advance", fore.advance, fields, S=project.splits, SP=wide)
    inject = None
    if case.INJECT:
        inject = plan.by_rows("inject", fore.inject, "D U R RP UNIT DROP", S=advance.splits)
    projects = case.UPDATE or case.DOWN
    return ForwardPlan(project if projects else None, parts=project.splits, advance=advance, inject=inject)


@lru_cache(PLANS)
def _backward_plan(
    case: Case,
    rows: int,
    kind: torch.dtype,
    device: torch.device,
    kinds: tuple[object, ...],
    follows: bool,
    wanted: bool,
) -> BackwardPlan:
    """Plan the backward pass: `follows` if s' was read, `wanted` if h gets a gradient."""
    plan = _Planner(case, rows, kind, device)
    pull, splits, name = None, 1, "retreat_only"
    if case.INJECT:
        pull, name = plan.by_rows("pull", back.pull, "D R RP"), "retreat"
        splits = pull.splits
    settle_low, settle_read = _settling(plan, splits)

    tile = plan.tile(name)
    strips = cdiv(case.D, tile.cols)
    parts = splits_for(strips, cdiv(rows, tile.rows), device)
    fields = "D U R UP RP UPDATE INJECT BIAS DROP FINE"
    retreat = plan.by_columns(name, back.retreat, fields, parts=parts, NEXT=follows)
    fields = "D U R UP RP NORM OFFSET UNIT UPDATE INJECT DROP"
    finish = plan.by_columns("finish", back.finish, fields, parts=parts, WANTED=wanted)
    return BackwardPlan(
        pull=pull,
        settle_low=settle_low,
        retreat=retreat,
        settle_read=settle_read,
        finish=finish,
        gather=_gathering(plan, parts),
        strips=strips,
        parts=parts,
    )


def _settling(plan: _Planner, splits: int) -> tuple[Call, Call]:
    """Plan `settle_low`, which adds up `pull`'s splits, and `settle_read`."""
    case, tile = plan.case, tile_of("settle", plan.kind, plan.rows, 16)
    blocks, options = (cdiv(plan.rows, tile.rows),), {"num_warps": tile.warps}
    low = {**case.pick("U R UP RP UNIT UPDATE INJECT GELU DROP FINE"), "S": splits, "BM": tile.rows}
    read = {**case.pick("D U R UP RP NORM UNIT UPDATE INJECT GELU DROP"), "BM": tile.rows}
    return Call(back.settle_low, blocks, low, **options), Call(back.settle_read, blocks, read, **options)


def _gathering(plan: _Planner, parts: int) -> Call:
    """Plan `gather`, with a program for each strip of each weight."""
    case, tile = plan.case, tile_of("gather", plan.kind, plan.rows, 16)
    # Weights are W_down, W_up, the four matrices of T and G, and all vectors as one.
    weights = 2
    if case.UPDATE:
        weights = 6
    if case.trains_norm or case.BIAS:
        weights = 7
    constants = {
        **case.pick("D U R UPDATE INJECT BIAS"),
        "LEARNED": case.trains_norm,
        "PARTS": parts,
        "BK": tile.rows,
        "BD": tile.cols,
    }
    return Call(back.gather, (cdiv(case.D, tile.cols), weights), constants, num_warps=tile.warps)


def forget_plans() -> None:
    """Make plans anew: after a change of `parts.TILES`."""
    _forward_plan.cache_clear()
    _backward_plan.cache_clear()
    launch_few.forget_plans()


def run_forward(case: Case, given: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward pass.

    Returns:
        h' (empty without an injection), s' (empty without an update), and what is kept for each row and for
        all rows.
    """
    h, s, w, seed = given.h.contiguous(), given.s.contiguous(), given.weights.contiguous(), given.seed
    n, rows = given.attributes, h.numel() // case.D
    out, moved = result(h, case.INJECT), result(s, case.UPDATE)
    kept_width, shared_width = kept_widths(w, case.NORM == 2)
    kept = h.new_empty(rows, kept_width, dtype=torch.float32)
    shared = h.new_empty(shared_width, dtype=torch.float32)
    if not rows:
        return out, moved, kept, shared
    with on(h.device):
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


def run_backward(case: Case, given: BackwardArguments) -> list[Tensor]:
    """Return the gradients of h (empty unless `wanted`), of s and of the trained weights, in order."""
    forward, kept, shared, wanted = given.forward, given.kept, given.shared, given.wanted
    seed, n = forward.seed, forward.attributes
    w, h, s = forward.weights.contiguous(), forward.h.contiguous(), forward.s.contiguous()
    dout, dnext = (None if grad is None else grad.contiguous() for grad in (given.dout, given.dnext))
    rows = h.numel() // case.D
    dh = result(h, wanted)
    ds, dw = torch.empty_like(s), _like(w.trainable(case.trains_norm))
    if not rows:
        return [dh, ds, *(grad.zero_() for grad in dw.present())]
    dq, low = h.new_empty(rows, case.R), h.new_empty(rows, case.R)
    act, dz = h.new_empty(rows, (2 + case.FINE) * case.U), h.new_empty(rows, 2 * case.U)
    dsize, coef = h.new_empty(rows, dtype=torch.float32), h.new_empty(rows, 3, dtype=torch.float32)
    with on(h.device):
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
            grads, dw.down, dw.up, dw.norm_w, dw.norm_b, dw.tin, dw.tout, dw.tout_b,
            dw.gin, dw.gout, dw.gout_b,
        )  # fmt: skip
    if dw.tin_b is not None and dw.gin_b is not None:
        sums = dz.sum(0, dtype=torch.float32)
        dw.tin_b.copy_(sums[: case.U])
        dw.gin_b.copy_(sums[case.U :])
    return [dh, ds, *dw.present()]


def _like(w: Weights) -> Weights:
    """Allocate a gradient for each weight that there is."""
    return Weights(*(None if weight is None else torch.empty_like(weight) for weight in w))
