"""Allocate what the fused kernels write, and launch them in order.

The plan of the launches is made once for each kind of boundary and kept.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from shadowpeft.ops.triton import backward as back
from shadowpeft.ops.triton import forward as fore
from shadowpeft.ops.triton import rows as alone
from shadowpeft.ops.triton import strips as striped
from shadowpeft.ops.triton.call import Call, kinds_of
from shadowpeft.ops.triton.case import (
    Arguments,
    BackwardArguments,
    Case,
    Weights,
    case_of_kind,
    is_all_bfloat16,
    kept_widths,
    power_of_2,
)
from shadowpeft.ops.triton.parts import (
    DTYPES,
    ROWS_ALONE,
    STATS,
    WIDEST,
    Tile,
    begins_early,
    is_captured,
    splits_for,
    tile_of,
)

# Plans kept at once, of some kilobytes each. There is one for each number of rows (batches are padded to many
# lengths), and forward and backward passes have their own.
_PLANS = 1024


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


@lru_cache(_PLANS)
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


@lru_cache(_PLANS)
def _rows_plan(
    case: Case, rows: int, kind: torch.dtype, device: torch.device, kinds: tuple[object, ...]
) -> Call:
    """Plan the one launch of few rows; a compiled kernel is one of a device."""
    tile = tile_of("cross", kind, rows, max(case.UP, case.RP))
    wide = power_of_2(case.D)
    constants = case.pick("D U R UP RP NORM OFFSET UNIT UPDATE INJECT GELU BIAS")
    constants |= {"WIDE": wide, "BD": min(tile.cols, wide)}
    return Call(alone.cross, (rows,), constants, num_warps=tile.warps)


class StripsPlan(NamedTuple):
    """The launches of few rows in a graph: the number of strips, and each kernel."""

    strips: int
    read: Call
    move: Call
    correct: Call


@lru_cache(_PLANS)
def _strips_plan(
    case: Case, rows: int, kind: torch.dtype, device: torch.device, kinds: tuple[object, ...]
) -> StripsPlan:
    """Plan the launches of few rows in a graph."""
    tile, early = tile_of("strips", kind, rows, max(case.UP, case.RP)), begins_early(device)
    strips = cdiv(case.D, tile.cols)
    grid, shape = (rows, strips), {"BD": tile.cols, "EARLY": early}
    options = {"num_warps": tile.warps}
    read = case.pick("D U UP NORM OFFSET UNIT UPDATE") | {"WIDE": power_of_2(case.D)} | shape
    shape |= {"SP": power_of_2(strips)}
    move = case.pick("D U R UP RP NORM OFFSET UNIT UPDATE INJECT GELU BIAS") | shape
    correct = case.pick("D R RP UNIT") | shape
    behind = options | ({"launch_pdl": True} if early else {})
    return StripsPlan(
        strips=strips,
        read=Call(striped.read, grid, read, **options),
        move=Call(striped.move, grid, move, **behind),
        correct=Call(striped.correct, grid, correct, **behind),
    )


@lru_cache(_PLANS)
def plan_few(
    shape: torch.Size,
    update: torch.Size | None,
    inject: torch.Size | None,
    variant: str,
    norm: str,
    activation: str,
    offset: float,
    device: torch.device,
    *types: torch.dtype | None,
) -> Call | None:
    """Return the one launch of a few rows, `None` where it cannot serve.

    Args:
        shape: of h.
        update: shape of T's first matrix, if there is an update.
        inject: shape of W_down, if there is an injection.
        variant: the equations.
        norm: kind of the norm that is read through.
        activation: of T and G.
        offset: of the norm.
        device: of all tensors.
        *types: of the tensors in the kernel's order, `None` for a missing one. All are aligned.
    """
    h, s, _, _, tin, tin_b, _, _, gin, _, gout, _, down, _ = types
    assert h is not None
    rows = shape[:-1].numel()
    U, R = update[0] if update else 0, inject[0] if inject else 0
    served = {None, *DTYPES}.issuperset((h, s, tin, down)) and max(U, R) <= WIDEST
    if not served or not 0 < rows <= ROWS_ALONE or (update is None and inject is None):
        return None
    case = case_of_kind(
        shape[-1], U, R, variant, norm, activation, offset, False,
        update is not None, inject is not None, tin_b is not None, is_all_bfloat16(h, gin, gout),
    )  # fmt: skip
    # As `run_rows` says the same, so that both have one plan.
    as_weights = (h, s, *types[4:], *types[2:4])
    kinds = tuple(None if kind is None else (kind, True) for kind in as_weights)
    return _rows_plan(case, rows, h, device, kinds)


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
    _rows_plan.cache_clear()
    _strips_plan.cache_clear()
    plan_few.cache_clear()
    _backward_plan.cache_clear()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on the device that holds the tensors, whichever is the current one."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


def run_forward(case: Case, given: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward pass.

    Returns:
        h' (empty without an injection), s' (empty without an update), and what is kept for each row and for
        all rows.
    """
    h, s, w, seed = given.h.contiguous(), given.s.contiguous(), given.weights.contiguous(), given.seed
    n, rows = given.attributes, h.numel() // case.D
    out, moved = _result(h, case.INJECT), _result(s, case.UPDATE)
    kept_width, shared_width = kept_widths(w, case.NORM == 2)
    kept = h.new_empty(rows, kept_width, dtype=torch.float32)
    shared = h.new_empty(shared_width, dtype=torch.float32)
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


def run_rows(case: Case, given: Arguments) -> tuple[Tensor, Tensor]:
    """Run the forward pass of a few rows and keep nothing for a backward pass.

    A graph that is being captured gets three kernels, which are faster on the device; else there is one,
    which takes the host less.

    Returns:
        h' (empty without an injection) and s' (empty without an update).
    """
    h, s, w = given.h.contiguous(), given.s.contiguous(), given.weights.contiguous()
    out, moved = _result(h, case.INJECT), _result(s, case.UPDATE)
    if h.numel():
        given = given._replace(h=h, s=s, weights=w)
        with _on(h.device):
            run = _run_strips if is_captured(h.device) else _run_cross
            run(case, given, moved, out)
    return out, moved


def _run_cross(case: Case, given: Arguments, moved: Tensor, out: Tensor) -> None:
    h, s, w, _, n = given
    call = _rows_plan(case, h.numel() // case.D, h.dtype, h.device, kinds_of((h, s, *w)))
    if h.is_cuda and not call.is_ready:
        # A graph may be captured next, when no kernel can be compiled and loaded.
        _run_strips(case, given, moved, out)
    call(
        h, s, w.norm_w, w.norm_b, w.tin, w.tin_b, w.tout, w.tout_b, w.gin, w.gin_b, w.gout, w.gout_b,
        w.down, w.up, moved, out, n.eps, n.gate_shift, n.alpha,
    )  # fmt: skip


def _run_strips(case: Case, given: Arguments, moved: Tensor, out: Tensor) -> None:
    h, s, w, _, n = given
    rows = h.numel() // case.D
    plan = _strips_plan(case, rows, h.dtype, h.device, kinds_of((h, s, *w)))
    scales = h.new_empty(rows, striped.SCALES.value, dtype=torch.float32)
    part = h.new_empty(rows, plan.strips, 2 * case.U, dtype=torch.float32)
    state = h.new_empty(rows, plan.strips, case.R, dtype=torch.float32)
    plan.read(h, w.norm_w, w.norm_b, w.tin, w.gin, scales, part, n.eps)
    plan.move(
        h, s, w.norm_w, w.norm_b, w.tin_b, w.tout, w.tout_b, w.gin_b, w.gout, w.gout_b, w.down, scales, part,
        moved, state, n.gate_shift,
    )  # fmt: skip
    if case.INJECT:
        plan.correct(h, w.up, scales, state, out, n.alpha)


def run_backward(case: Case, given: BackwardArguments) -> list[Tensor]:
    """Return the gradients of h (empty unless `wanted`), of s and of the trained weights, in order."""
    forward, kept, shared, wanted = given.forward, given.kept, given.shared, given.wanted
    seed, n = forward.seed, forward.attributes
    w, h, s = forward.weights.contiguous(), forward.h.contiguous(), forward.s.contiguous()
    dout, dnext = (None if grad is None else grad.contiguous() for grad in (given.dout, given.dnext))
    rows = h.numel() // case.D
    dh = _result(h, wanted)
    ds, dw = torch.empty_like(s), _like(w.trainable(case.trains_norm))
    if not rows:
        return [dh, ds, *(grad.zero_() for grad in dw.present())]
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
            grads, dw.down, dw.up, dw.norm_w, dw.norm_b, dw.tin, dw.tout, dw.tout_b,
            dw.gin, dw.gout, dw.gout_b,
        )  # fmt: skip
    if dw.tin_b is not None and dw.gin_b is not None:
        sums = dz.sum(0, dtype=torch.float32)
        dw.tin_b.copy_(sums[: case.U])
        dw.gin_b.copy_(sums[case.U :])
    return [dh, ds, *dw.present()]


def _result(like: Tensor, written: bool) -> Tensor:
    """Allocate a result, empty where no kernel writes it."""
    return torch.empty_like(like) if written else like.new_empty(0)


def _like(w: Weights) -> Weights:
    """Allocate a gradient for each weight that there is."""
    return Weights(*(None if weight is None else torch.empty_like(weight) for weight in w))
