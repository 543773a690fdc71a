"""The kernels for few rows, as decoding runs them: one, and three in a graph."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.boundary_cases import BFLOAT16, DEVICE, FLOAT32, KINDS, Kind, draw, errors, in_float64
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture
from torch import Tensor

from shadowpeft.ops import reference

pytest.importorskip("triton")

from shadowpeft.ops.triton import few, launch_few, op

pytestmark = ignore_overflow

TYPES = [
    (torch.float32, None, None),
    (torch.bfloat16, None, None),
    (torch.bfloat16, torch.float32, None),
    (torch.bfloat16, torch.float32, torch.float32),
]


@pytest.fixture(autouse=True, params=["one kernel", "three kernels"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run as outside of a graph, or as where one is captured; no test of the one runs the other."""
    is_in_graph = request.param == "three kernels"
    monkeypatch.setattr(launch_few, "is_captured", lambda device: is_in_graph)
    if DEVICE == "cpu":
        for name in ("_run_cross", "plan_few") if is_in_graph else ("_run_strips",):
            monkeypatch.setattr(launch_few, name, None)
    return str(request.param)


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of this kernel, so that no test runs another by mistake."""
    calls: list[int] = []
    run, short = launch_few.run_rows, few.cross
    monkeypatch.setattr(op, "run_rows", lambda *given: calls.append(1) or run(*given))

    def cross(*given: Any) -> Any:
        crossed = short(*given)
        calls.extend([1] * (crossed is not None))
        return crossed

    monkeypatch.setattr(few, "cross", cross)
    return calls


def crossed(boundary: object, drawn: object) -> dict[str, Tensor]:
    new_h, new_s = boundary(drawn.h, drawn.s, drawn.crossing)
    return {"new_h": new_h, "new_s": new_s}


@pytest.mark.parametrize(("stream", "weights", "state"), TYPES)
@pytest.mark.parametrize(("variant", "norm"), KINDS)
@torch.no_grad()
def test_it_is_as_exact_as_the_reference(
    variant: str, norm: str, stream: torch.dtype, weights: torch.dtype, state: torch.dtype, launched: list
) -> None:
    """Catches an equation of another variant, a column left out or read past the end, a sum in few digits."""
    kind = Kind(variant, norm, (2,), D=600, U=10, R=17, stream=stream, weights=weights, state=state)
    bound = FLOAT32 if stream == torch.float32 else BFLOAT16
    for halves in ("both", "inject", "update"):
        drawn = draw(replace(kind, halves=halves))
        truth = crossed(reference.boundary, in_float64(drawn))
        plain, got = crossed(reference.boundary, drawn), crossed(op.boundary, drawn)
        ours, theirs = errors(got, truth), errors(plain, truth)
        for name in truth:
            assert (got[name].dtype, got[name].shape) == (plain[name].dtype, plain[name].shape)
            assert ours[name] <= bound["times"] * theirs[name] + bound["floor"], (halves, name)
    assert len(launched) == 3


@torch.no_grad()
def test_a_row_is_the_same_alone_to_the_last_bit() -> None:
    """Catches what would make a draft's token another than the plain one."""
    drawn = draw(Kind("normed", "layer", shape=(7,), D=72, stream=torch.bfloat16))
    together = op.boundary(drawn.h, drawn.s, drawn.crossing)
    for row in range(7):
        alone = op.boundary(drawn.h[row : row + 1], drawn.s[row : row + 1], drawn.crossing)
        for result, single in zip(together, alone, strict=True):
            assert torch.equal(result[row : row + 1], single)


def test_who_wants_gradients_gets_them(launched: list) -> None:
    """Catches this kernel, which has no backward pass, where a graph is built, and its absence elsewhere."""
    drawn = draw(Kind(shape=(3,), D=24))
    op.boundary(drawn.h, drawn.s, drawn.crossing)
    assert not launched, "the weights ask for gradients"
    with torch.no_grad():
        op.boundary(drawn.h, drawn.s, drawn.crossing)
        assert len(launched) == 1
        op.boundary(drawn.h, drawn.s, drawn.crossing._replace(rule=drawn.rule._replace(dropout=0.5)))
        many = draw(Kind(shape=(op.ROWS_ALONE + 1,), D=24))
        op.boundary(many.h, many.s, many.crossing)
    assert len(launched) == 1, "dropout and many rows are others' work"


@torch.no_grad()
def test_rows_may_lie_anyhow_and_be_none() -> None:
    drawn = draw(Kind("paper", "none", shape=(3, 4), D=24))
    want = op.boundary(drawn.h, drawn.s, drawn.crossing)
    h, s = (tensor.transpose(0, 2).contiguous().transpose(0, 2) for tensor in (drawn.h, drawn.s))
    got = op.boundary(h, s, drawn.crossing)
    assert all(map(torch.equal, got, want))
    empty = op.boundary(drawn.h[:0], drawn.s[:0], drawn.crossing)
    assert [tensor.shape for tensor in empty] == [(0, 4, 24)] * 2


@torch.no_grad()
def test_it_compiles_whole(launched: list) -> None:
    """Catches a graph break, and an operation whose fake differs from it."""
    drawn = draw(Kind("peft", "none", shape=(1, 1), D=40))

    def cross(h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        for one in (replace(drawn, update=None), drawn, replace(drawn, inject=None)):
            h, s = op.boundary(h, s, one.crossing)
        return h, s

    want = cross(drawn.h, drawn.s)
    before = len(launched)
    got = torch.compile(cross, fullgraph=True, backend="aot_eager")(drawn.h, drawn.s)
    assert all(map(torch.equal, got, want))
    assert len(launched) > before
