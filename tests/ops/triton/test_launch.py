"""Launching the kernels: what they may be given, and how often a plan is made."""

from dataclasses import replace

import pytest
import torch
from helpers.boundary_cases import DEVICE, Kind, draw, run
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.kernel_arguments import arguments_of
from helpers.poison import poisoned  # noqa: F401 - a fixture

pytest.importorskip("triton")

from shadowpeft.ops.triton import launch, op
from shadowpeft.ops.triton.case import case_of

pytestmark = ignore_overflow


def test_tensors_may_lie_anyhow_in_memory() -> None:
    """Catches a kernel that takes its inputs, or the gradients that come to it, for contiguous."""
    drawn = draw(Kind())
    want = run(op.boundary, drawn)
    tensors = (drawn.h, drawn.s, drawn.dh, drawn.ds)
    h, s, dh, ds = (tensor.transpose(0, 2).contiguous().transpose(0, 2) for tensor in tensors)
    assert not any(tensor.is_contiguous() for tensor in (h, s, dh, ds))
    got = run(op.boundary, replace(drawn, h=h, s=s, dh=dh, ds=ds))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_no_rows_at_all() -> None:
    drawn = draw(Kind("paper", "none", shape=(0, 4)))
    got = run(op.boundary, drawn)
    assert got["new_h"].shape == got["d_s"].shape == (0, 4, 72)
    assert all(not got[name].any() for name in got)


def misses() -> tuple[int, int]:
    return launch._forward_plan.cache_info().misses, launch._backward_plan.cache_info().misses


def test_a_plan_is_made_once_for_each_kind_of_boundary() -> None:
    """Catches a plan for each call, which costs the host time, and one plan for too many kinds."""
    launch.forget_plans()
    kind = Kind(shape=(3,), D=24)
    for drawn in (draw(kind, seed=1), draw(kind, seed=2), draw(kind, seed=1)):
        run(op.boundary, drawn)
        assert misses() == (1, 1)
    run(op.boundary, draw(replace(kind, shape=(4,))))
    assert misses() == (2, 2), "another number of rows"
    drawn = draw(kind)
    odd = torch.empty(drawn.h.numel() + 1, device=DEVICE)[1:].view_as(drawn.h).copy_(drawn.h)
    assert odd.data_ptr() % 16
    run(op.boundary, replace(drawn, h=odd))
    assert misses() == (2 + 1, 2 + 1), "another alignment, for which another kernel is compiled"


def test_halves_that_are_missing_are_not_launched() -> None:
    """Catches a kernel that is launched for nothing."""
    launched = {}
    for halves in ("both", "inject", "update"):
        drawn = draw(Kind("normed", "rms", shape=(3,), D=24, halves=halves))
        given = arguments_of(drawn)
        case = case_of(given)
        plan = launch._forward_plan(case, 3, drawn.h.dtype, drawn.h.device, (halves,))
        back = launch._backward_plan(case, 3, drawn.h.dtype, drawn.h.device, (halves,), True, True)
        launched[halves] = (plan.project is None, plan.inject is None, back.pull is None)
    assert launched == {
        "both": (False, False, False),
        "inject": (False, False, False),
        "update": (False, True, True),
    }
