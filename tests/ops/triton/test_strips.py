"""The kernels for few rows in a graph; `test_rows` compares them with the equations."""

import pytest
import torch
from helpers.boundary_cases import Kind, draw
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.kernel_arguments import arguments_of
from helpers.poison import poisoned  # noqa: F401 - a fixture
from torch import Tensor

pytest.importorskip("triton")

from shadowpeft.ops.triton import launch, op
from shadowpeft.ops.triton.case import case_of
from shadowpeft.ops.triton.parts import TILES, Tile

pytestmark = ignore_overflow


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
@torch.no_grad()
def test_strips_may_be_of_any_width(halves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a strip that is left out, or counted twice."""
    drawn = draw(Kind("normed", "rms", shape=(2,), D=200, halves=halves))
    want = op.boundary(drawn.h, drawn.s, drawn.crossing)
    monkeypatch.setattr(launch, "is_captured", lambda device: True)
    ran, run = [], launch._run_strips
    monkeypatch.setattr(launch, "_run_strips", lambda *given: ran.append(1) or run(*given))
    for cols in (16, 64, 256):
        monkeypatch.setitem(TILES, "strips", (Tile(1, cols, 1, 1),) * 3)
        launch.forget_plans()
        got = op.boundary(drawn.h, drawn.s, drawn.crossing)
        for result, wanted in zip(got, want, strict=True):
            torch.testing.assert_close(result, wanted)
    launch.forget_plans()
    assert len(ran) == 3


def test_the_first_kernel_never_begins_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches weights that are read before what computed or copied them has ended."""
    drawn = draw(Kind("normed", "rms", shape=(2,), D=200))
    for early in (True, False):
        monkeypatch.setattr(launch, "begins_early", lambda device, early=early: early)
        launch.forget_plans()
        case = case_of(arguments_of(drawn))
        plan = launch._strips_plan(case, 2, drawn.h.dtype, drawn.h.device, ("kind",))
        calls = (plan.read, plan.move, plan.correct)
        assert [call._options.get("launch_pdl", False) for call in calls] == [False, early, early]
        assert [call._constants["EARLY"] for call in calls] == [early] * 3
    launch.forget_plans()


@pytest.mark.gpu
@torch.no_grad()
def test_a_graph_waits_for_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a kernel that begins early and reads what the one ahead of it has not written yet."""
    kind = Kind("normed", "rms", (1, 3), 4096, 10, 16, stream=torch.bfloat16)
    drawn = [draw(kind, seed=seed) for seed in range(40)]
    h, s = drawn[0].h.clone(), drawn[0].s.clone()

    def cross(apart: bool) -> tuple[Tensor, Tensor]:
        results = h, s
        for one in drawn:
            results = op.boundary(*results, one.crossing)
            if apart:
                torch.cuda.synchronize()
        return results

    cross(apart=True)  # kernels are loaded where nothing is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = cross(apart=False)
    # What is compared with is launched one behind the other.
    monkeypatch.setattr(launch, "is_captured", lambda device: True)
    monkeypatch.setattr(launch, "begins_early", lambda device: False)
    launch.forget_plans()
    for _ in range(100):
        h.normal_()
        s.normal_()
        graph.replay()
        for result, wanted in zip(got, cross(apart=True), strict=True):
            assert torch.equal(result, wanted)
    launch.forget_plans()
