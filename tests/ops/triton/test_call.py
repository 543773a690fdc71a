"""Kernels launched without Triton's launcher: which arguments they get, and which tensors may not share a
compiled kernel.
"""

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.boundary_cases import Kind, assert_as_exact, draw

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

from shadowpeft.ops.triton import op
from shadowpeft.ops.triton.call import Call, kinds_of


class Kernel:
    """Stands in for a jitted kernel: notes how it was launched, and gives back a compiled one that does the
    same.
    """

    arg_names = ("x", "y", "n", "A", "B")

    def __init__(self, compiles: bool = True) -> None:
        self.launched: list[Any] = []
        self.compiles = compiles

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> Any:
            self.launched.append(("launcher", grid, arguments, named))
            return Compiled(self.launched) if self.compiles else None

        return launch


class Compiled:
    def __init__(self, launched: list[Any]) -> None:
        self.launched = launched

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.launched.append(("compiled", grid, arguments, {}))


def test_only_the_first_launch_goes_through_the_launcher() -> None:
    """Catches constants in another order than the kernel's own, and a grid that the compiled kernel cannot
    take.
    """
    kernel = Kernel()
    call = Call(kernel, (2, 3), {"B": 5, "A": 4}, num_warps=8)
    x, y = torch.zeros(1), torch.ones(1)
    call(x, None, 7)
    call(y, None, 8)
    call(x, y, 9)
    assert kernel.launched == [
        ("launcher", (2, 3, 1), (x, None, 7), {"B": 5, "A": 4, "num_warps": 8}),
        ("compiled", (2, 3, 1), (y, None, 8, 4, 5), {}),
        ("compiled", (2, 3, 1), (x, y, 9, 4, 5), {}),
    ]


def test_the_interpreter_is_asked_each_time() -> None:
    """Catches a call that takes "nothing was compiled" for a kernel."""
    kernel = Kernel(compiles=False)
    call = Call(kernel, (1,), {"A": 4, "B": 5})
    for n in (1, 2):
        call(None, None, n)
    assert [kind for kind, *_ in kernel.launched] == ["launcher", "launcher"]


def test_what_triton_compiles_for_is_told_apart() -> None:
    """Catches wide loads from a tensor that does not begin at a multiple of 16 bytes, and one type's kernel
    given another's numbers.
    """
    x = torch.zeros(64)
    kinds = [kinds_of([tensor]) for tensor in (x, x[1:], x.bfloat16(), x.bfloat16()[1:], None)]
    assert len(set(kinds)) == len(kinds)
    assert kinds_of([x[4:]]) == kinds_of([torch.ones(3)])


@pytest.mark.gpu
def test_tensors_that_begin_anywhere_after_some_that_do_not() -> None:
    """Catches a compiled kernel that is given tensors of another alignment or type, or another number of
    rows, than it was compiled for.
    """
    for stream, floor in ((torch.bfloat16, 1e-4), (torch.float32, 2e-6)):
        for rows in (40, 300, 40):
            drawn = draw(Kind("normed", "rms", (rows,), 264, 10, 16, stream=stream))
            odd = (
                torch.empty(drawn.h.numel() + 1, dtype=stream, device=drawn.h.device)[1:]
                .view_as(drawn.h)
                .copy_(drawn.h)
            )
            assert odd.data_ptr() % 16
            for h in (drawn.h, odd, drawn.h):
                assert_as_exact(
                    op.boundary,
                    replace(drawn, h=h),
                    times=1.5 if stream == torch.bfloat16 else 3.0,
                    floor=floor,
                )


@pytest.mark.gpu
def test_launches_follow_the_current_stream() -> None:
    """Catches a compiled kernel that remembers the stream of its first launch: its result would be read
    before it is there.
    """
    drawn = draw(Kind("normed", "rms", (4, 1024), 4096, 10, 16, stream=torch.bfloat16))

    def cross() -> torch.Tensor:
        return op.boundary(drawn.h, drawn.s, drawn.crossing)[0]

    want, side = cross(), torch.cuda.Stream()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(
        graph, stream=side
    ):  # a launch on any other stream is refused, or missing from the graph
        got = cross()
    got.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got, want)
