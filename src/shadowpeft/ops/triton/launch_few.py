"""Plan and launch the kernels of few rows: one for the host's sake, or three for the device's in a graph.

As in `launch`, a plan is made once for each kind of boundary and kept.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from triton import cdiv

from shadowpeft.ops.triton import rows as alone
from shadowpeft.ops.triton import strips as striped
from shadowpeft.ops.triton.call import PLANS, Call, kinds_of, on, result
from shadowpeft.ops.triton.case import Arguments, Case, case_of_kind, is_all_bfloat16, power_of_2
from shadowpeft.ops.triton.parts import DTYPES, ROWS_ALONE, WIDEST, begins_early, is_captured, tile_of


class StripsPlan(NamedTuple):
    """The launches of few rows in a graph: the number of strips, and each kernel."""

    strips: int
    read: Call
    move: Call
    correct: Call


@lru_cache(PLANS)
def _rows_plan(
    case: Case, rows: int, kind: torch.dtype, device: torch.device, kinds: tuple[object, ...]
) -> Call:
    """Plan the one launch of few rows; a compiled kernel is one of a device."""
    tile = tile_of("cross", kind, rows, max(case.UP, case.RP))
    wide = power_of_2(case.D)
    constants = case.pick("D U R UP RP NORM OFFSET UNIT UPDATE INJECT GELU BIAS")
    constants |= {"WIDE": wide, "BD": min(tile.cols, wide)}
    return Call(alone.cross, (rows,), constants, num_warps=tile.warps)


@lru_cache(PLANS)
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


@lru_cache(PLANS)
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


def forget_plans() -> None:
    """Make the plans of few rows anew."""
    _rows_plan.cache_clear()
    _strips_plan.cache_clear()
    plan_few.cache_clear()


def run_rows(case: Case, given: Arguments) -> tuple[Tensor, Tensor]:
    """Run the forward pass of a few rows and keep nothing for a backward pass.

    A graph that is being captured gets three kernels, which are faster on the device; else there is one,
    which takes the host less.

    Returns:
        h' (empty without an injection) and s' (empty without an update).
    """
    h, s, w = given.h.contiguous(), given.s.contiguous(), given.weights.contiguous()
    out, moved = result(h, case.INJECT), result(s, case.UPDATE)
    if h.numel():
        given = given._replace(h=h, s=s, weights=w)
        with on(h.device):
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
