"""Launching the kernels of few rows: which of them, how, and how often a plan is made."""

from dataclasses import replace

import pytest
import torch
from helpers.boundary_cases import Kind, draw
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.kernel_arguments import arguments_of

pytest.importorskip("triton")

from shadowpeft.ops.triton import launch_few, op
from shadowpeft.ops.triton.case import case_of

pytestmark = ignore_overflow


def test_the_first_kernel_never_begins_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches weights that are read before what computed or copied them has ended."""
    drawn = draw(Kind("normed", "rms", shape=(2,), D=200))
    for early in (True, False):
        monkeypatch.setattr(launch_few, "begins_early", lambda device, early=early: early)
        launch_few.forget_plans()
        case = case_of(arguments_of(drawn))
        plan = launch_few._strips_plan(case, 2, drawn.h.dtype, drawn.h.device, ("kind",))
        calls = (plan.read, plan.move, plan.correct)
        assert [call._options.get("launch_pdl", False) for call in calls] == [False, early, early]
        assert [call._constants["EARLY"] for call in calls] == [early] * 3
    launch_few.forget_plans()


@torch.no_grad()
def test_a_plan_is_made_once_for_each_kind_of_boundary() -> None:
    """Catches a plan for each token, and one plan for the short way and another one for the long way."""
    launch_few.forget_plans()
    kind = Kind("normed", "rms", shape=(2,), D=24)

    def misses() -> tuple[int, int]:
        return launch_few._rows_plan.cache_info().misses, launch_few._strips_plan.cache_info().misses

    for seed in (1, 2):
        drawn = draw(kind, seed=seed)
        op.boundary(drawn.h, drawn.s, drawn.crossing)
        launch_few.run_rows(case_of(arguments_of(drawn)), arguments_of(drawn))
        assert misses() == (1, 0)
    drawn = draw(replace(kind, shape=(3,)))
    op.boundary(drawn.h, drawn.s, drawn.crossing)
    assert misses() == (2, 0), "another number of rows"


@torch.no_grad()
def test_nothing_is_launched_for_no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a grid without a program, which a driver refuses."""
    monkeypatch.setattr(launch_few, "_run_cross", None)
    given = arguments_of(draw(Kind("normed", "rms", shape=(0,), D=24)))
    out, moved = launch_few.run_rows(case_of(given), given)
    assert out.shape == moved.shape == (0, 24)
