"""The kernels for few rows in a graph; `test_rows` compares them with the equations."""

import pytest
import torch
from helpers.boundary_cases import Kind, draw
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture
from torch import Tensor

pytest.importorskip("triton")

from shadowpeft.ops.triton import launch_few, op
from shadowpeft.ops.triton.parts import TILES, Tile

pytestmark = ignore_overflow


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
@torch.no_grad()
def test_strips_may_be_of_any_width(halves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a strip that is left out, or counted twice."""
    drawn = draw(Kind("normed", "rms", shape=(2,), D=200, halves=halves))
    want = op.boundary(drawn.h, drawn.s, drawn.crossing)
    monkeypatch.setattr(launch_few, "is_captured", lambda device: True)
    ran, run = [], launch_few._run_strips
    monkeypatch.setattr(launch_few, "_run_strips", lambda *given: ran.append(1) or run(*given))
    for cols in (16, 64, 256):
        monkeypatch.setitem(TILES, "strips", (Tile(1, cols, 1, 1),) * 3)
        launch_few.forget_plans()
        got = op.boundary(drawn.h, drawn.s, drawn.crossing)
        for result, wanted in zip(got, want, strict=True):
            torch.testing.assert_close(result, wanted)
    launch_few.forget_plans()
    assert len(ran) == 3


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
    monkeypatch.setattr(launch_few, "is_captured", lambda device: True)
    monkeypatch.setattr(launch_few, "begins_early", lambda device: False)
    launch_few.forget_plans()
    for _ in range(100):
        h.normal_()
        s.normal_()
        graph.replay()
        for result, wanted in zip(got, cross(apart=True), strict=True):
            assert torch.equal(result, wanted)
    launch_few.forget_plans()
