"""The short way to the kernel for a few rows: it does what the long way does and is never stale."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.boundary_cases import DEVICE, KINDS, Drawn, Kind, draw
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shadowpeft.errors import ConfigError
from shadowpeft.ops.reference import InjectionWeights, UpdateWeights

pytest.importorskip("triton")

from shadowpeft.ops.triton import call, few, launch_few, op

pytestmark = ignore_overflow
ROW = Kind(shape=(1, 1), D=24)


def short(drawn: Drawn) -> tuple[Tensor, Tensor] | None:
    norm = op._norm_of(drawn.crossing)
    assert norm is not None
    if DEVICE == "cuda":
        long(drawn)  # the first time loads the kernel
    return few.cross(drawn.h, drawn.s, drawn.crossing, norm)


def long(drawn: Drawn) -> tuple[Tensor, Tensor]:
    norm = op._norm_of(drawn.crossing)
    assert norm is not None
    return op._fused(drawn.h, drawn.s, drawn.crossing, norm)


def assert_same(drawn: Drawn) -> None:
    """The short way serves, and its results are the long way's to the last bit."""
    got = short(drawn)
    assert got is not None
    for ours, theirs in zip(got, long(drawn), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("variant", "norm"), KINDS)
@torch.no_grad()
def test_both_ways_are_the_same_to_the_last_bit(variant: str, norm: str) -> None:
    """Catches a tensor in another's place, and a half that is missing."""
    for types in ({}, {"stream": torch.bfloat16}, {"stream": torch.bfloat16, "weights": torch.float32}):
        for halves in ("both", "inject", "update"):
            drawn = draw(Kind(variant, norm, (2,), D=40, U=5, R=3, halves=halves, **types))
            assert_same(drawn)
            got = short(drawn)
            assert got is not None
            assert (got[0] is drawn.h, got[1] is drawn.s) == (halves == "update", halves == "inject")


def of_parameters(drawn: Drawn) -> Drawn:
    """Let the weights be parameters, as a model's are."""
    assert drawn.update is not None
    assert drawn.inject is not None
    update = (nn.Parameter(part) if isinstance(part, Tensor) else part for part in drawn.update)
    return replace(
        drawn, update=UpdateWeights(*update), inject=InjectionWeights(*map(nn.Parameter, drawn.inject))
    )


def changes(drawn: Drawn) -> dict[str, Callable[[], Drawn]]:
    """What may happen to a boundary's weights and settings between two tokens."""
    update, inject, rule = drawn.update, drawn.inject, drawn.rule
    assert update is not None
    assert inject is not None
    every = [part for part in (*update, *inject) if isinstance(part, Tensor)]

    def write() -> None:
        for weight in every:
            weight.mul_(1.5)

    def put(change: Callable[[Tensor], Tensor]) -> None:
        for weight in every:
            weight.data = change(weight.data)

    def done(change: Callable[[], None]) -> Callable[[], Drawn]:
        return lambda: (change(), drawn)[1]

    return {
        "written over": done(write),
        "other memory": done(lambda: put(lambda weight: 2 * weight)),
        "another type": done(lambda: put(Tensor.bfloat16)),
        "and back": done(lambda: put(Tensor.float)),
        "another weight": lambda: replace(drawn, inject=inject._replace(up_DR=2 * inject.up_DR)),
        "alpha": lambda: replace(drawn, rule=rule._replace(alpha=0.1)),
        "gate_shift": lambda: replace(drawn, update=update._replace(gate_shift=0.5)),
        "activation": lambda: replace(drawn, update=update._replace(activation="gelu")),
        "another norm": lambda: replace(drawn, norm=draw(replace(ROW, norm="layer")).norm),
        "another rank": lambda: replace(drawn, inject=draw(replace(ROW, R=9)).inject),
        "no update": lambda: replace(drawn, update=None),
        "more rows": lambda: replace(drawn, h=drawn.h.repeat(3, 2, 1), s=drawn.s.repeat(3, 2, 1)),
    }  # fmt: skip


@torch.no_grad()
def test_nothing_is_kept_from_one_call_to_the_next() -> None:
    """Catches a result by weights, types, sizes or settings as they were at a former call."""
    drawn = of_parameters(draw(ROW))
    before = short(drawn)
    assert before is not None
    for name, change in changes(drawn).items():
        changed = change()
        assert_same(changed)
        after = short(changed)
        assert after is not None
        if name not in ("and back", "more rows"):
            assert not torch.equal(after[0], before[0]), name
        before = short(drawn)
        assert before is not None


@torch.no_grad()
def test_what_takes_more_than_one_launch_goes_the_long_way() -> None:
    """Catches a kernel that reads memory as it does not lie, or that drops out nothing."""
    drawn = draw(ROW)
    assert drawn.inject is not None
    odd = torch.empty(drawn.h.numel() + 1, device=drawn.h.device)[1:].view_as(drawn.h).copy_(drawn.h)
    up_DR = drawn.inject.up_DR.T.contiguous().T
    many = draw(replace(ROW, shape=(op.ROWS_ALONE + 1,)))
    for other in (
        replace(drawn, h=odd),
        replace(drawn, inject=drawn.inject._replace(up_DR=up_DR)),
        replace(drawn, rule=drawn.rule._replace(dropout=0.5)),
        replace(drawn, h=drawn.h[:0], s=drawn.s[:0]),
        replace(drawn, update=None, inject=None),
        many,
    ):
        assert short(other) is None
        op.boundary(other.h, other.s, other.crossing)
    want = op.boundary(drawn.h, drawn.s, drawn.crossing)
    for other in (replace(drawn, h=odd), replace(drawn, inject=drawn.inject._replace(up_DR=up_DR))):
        assert all(map(torch.equal, op.boundary(other.h, other.s, other.crossing), want))


def test_gradients_go_the_long_way() -> None:
    """Catches a boundary that is cut from the graph because nothing in it asks for a gradient yet."""
    assert short(draw(ROW)) is None


@torch.no_grad()
def test_who_looks_at_operations_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a launch behind the back of a dispatch mode."""
    seen: list[Any] = []

    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    drawn = draw(ROW)
    want = op.boundary(drawn.h, drawn.s, drawn.crossing)
    with Looks():
        got = op.boundary(drawn.h, drawn.s, drawn.crossing)
    assert torch.ops.shadowpeft.boundary_of_rows.default in seen
    assert all(map(torch.equal, got, want))


@torch.no_grad()
def test_what_is_refused_is_refused_as_ever() -> None:
    """Catches a weight elsewhere whose place is handed to a kernel, and a type that no kernel reads."""
    drawn = draw(ROW)
    assert drawn.inject is not None
    short(drawn)
    elsewhere = drawn.inject._replace(down_RD=drawn.inject.down_RD.to("meta"))
    with pytest.raises(ConfigError, match="on one device"):
        op.boundary(drawn.h, drawn.s, replace(drawn, inject=elsewhere).crossing)
    half = draw(replace(ROW, stream=torch.float16))
    with pytest.raises(ConfigError, match="float16"):
        op.boundary(half.h, half.s, half.crossing)
    wide = draw(replace(ROW, R=129))
    with pytest.raises(ConfigError, match="up to 128"):
        op.boundary(wide.h, wide.s, wide.crossing)


class Compiled:
    """Stands in for a kernel and for what is compiled of it: notes what the compiled one is given."""

    def __init__(self, arg_names: list[str]) -> None:
        self.arg_names, self.given = arg_names, list[tuple[Any, ...]]()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> "Compiled":
            self.given.append(arguments)
            return self

        return launch


@torch.no_grad()
def test_a_compiled_kernel_is_given_places_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the place of a weight that has moved, and places in another order than the kernel's."""
    kernel = Compiled(launch_few.alone.cross.arg_names)
    monkeypatch.setattr(launch_few.alone, "cross", kernel)
    launch_few.forget_plans()
    try:
        drawn = of_parameters(draw(ROW))
        assert drawn.inject is not None
        short(drawn)
        for _ in range(2):
            got = short(drawn)
            assert got is not None
            tensors = dict(zip(kernel.arg_names, kernel.given[0], strict=False))
            places = dict(zip(kernel.arg_names, kernel.given[-1], strict=False))
            for name in ("h_ND", "s_ND", "w_D", "tin_UD", "tout_DU", "gin_UD", "gout_DU", "down_RD", "up_DR"):
                assert places[name] == tensors[name].data_ptr(), name
            assert places["b_D"] is places["tin_b"] is None
            assert (places["out_ND"], places["next_ND"]) == tuple(tensor.data_ptr() for tensor in got)
            assert places["eps"] == tensors["eps"]
            assert len(kernel.given[-1]) == len(kernel.arg_names), "constants follow"
            drawn.inject.up_DR.data = drawn.inject.up_DR.data.clone()
    finally:
        launch_few.forget_plans()


def test_places_are_given_once_there_is_a_compiled_kernel() -> None:
    """Catches numbers where the launcher wants tensors, and tensors where it need not look at any."""
    kernel = Compiled(["x", "y", "n", "A"])
    prepared = call.Call(kernel, (1,), {"A": 4})
    x = torch.zeros(1)
    prepared.at([x.data_ptr(), None], [x, None], 1.0)
    prepared.at([x.data_ptr(), None], [x, None], 2.0)
    assert kernel.given == [(x, None, 1.0), (x.data_ptr(), None, 2.0, 4)]


@torch.no_grad()
def test_a_graph_is_left_to_its_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the one launch, which is cheap for the host, where the host launches nothing."""
    drawn = draw(Kind("normed", "rms", (2,), D=40))
    assert short(drawn) is not None
    monkeypatch.setattr(launch_few, "is_captured", lambda device: True)
    assert short(drawn) is None
