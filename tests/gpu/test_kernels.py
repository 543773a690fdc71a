"""The fused boundary as compiled for a GPU, at the size it is made for; `tests/ops/triton` runs compiled,
too, where there is a GPU.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.boundary_cases import Drawn, Kind, assert_as_exact, assert_as_exact_over_draws, draw, run
from torch import Tensor

pytest.importorskip("triton")

from helpers.poison import poisoned  # noqa: F401 - a fixture

from shadowpeft.ops.triton import op as fused

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

QWEN3_8B = {"shape": (4, 1024), "D": 4096, "U": 10, "R": 16}


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("halves", ["both", "update"])
@pytest.mark.parametrize(("variant", "norm"), [("normed", "rms"), ("paper", "none"), ("peft", "none")])
def test_bfloat16_at_full_size(variant: str, norm: str, halves: str, weights: torch.dtype) -> None:
    """Catches what only many rows show: splits of rows and columns, offsets, sums of thousands that lose
    digits. With float32 weights: gradients that are rounded, and tiles that do not fit. There both errors are
    mostly the rounding of the weights to bfloat16, so of a single draw their ratio is chance.
    """
    kind = Kind(variant, norm, halves=halves, stream=torch.bfloat16, weights=weights, **QWEN3_8B)
    assert_as_exact_over_draws(fused.boundary, kind, times=1.25, floor=1e-4)


@pytest.mark.parametrize(("variant", "norm"), [("normed", "gemma"), ("normed", "layer"), ("paper", "none")])
def test_float32_at_full_size(variant: str, norm: str) -> None:
    """Catches tf32, whose error is near 3e-4."""
    assert_as_exact(fused.boundary, draw(Kind(variant, norm, **QWEN3_8B)), times=3.0, floor=2e-6)


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_the_widest_that_is_served(variant: str) -> None:
    """Catches a tile that does not fit the machine where r and update_width are as large as they may be."""
    norm = "rms" if variant == "normed" else "none"
    low, wide = torch.bfloat16, torch.float32
    for stream, weights in ((low, low), (low, wide), (wide, wide)):
        drawn = draw(Kind(variant, norm, shape=(300,), D=520, U=128, R=128, stream=stream, weights=weights))
        assert_as_exact(fused.boundary, drawn, times=1.5 if stream == torch.bfloat16 else 3.0, floor=1e-4)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_two_runs_are_equal_to_the_last_bit(weights: torch.dtype) -> None:
    """Catches a race between programs."""
    drawn = draw(Kind(stream=torch.bfloat16, weights=weights, **QWEN3_8B))
    one = run(fused.boundary, drawn)
    for _ in range(3):
        two = run(fused.boundary, drawn)
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_chain_keeps_one_pair_of_states_a_boundary() -> None:
    """Catches a second copy of the state, or anything else as wide, held between the passes."""
    drawn = draw(Kind(stream=torch.bfloat16, **QWEN3_8B))
    h, s = drawn.h.requires_grad_(), drawn.s.requires_grad_()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(8):
        h, s = fused.boundary(h, s, drawn.crossing)
    held = (torch.cuda.memory_allocated() - before) / (8 * 2 * h.numel() * h.element_size())
    assert held < 1.03


def chain(drawn: Drawn) -> Any:
    """Three boundaries of all kinds, one after the other."""
    first, last = replace(drawn, update=None), replace(drawn, inject=None)

    def cross(h: Tensor, s: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
        for one in (first, drawn, last):
            h, s = fused.boundary(h, s, one.crossing)
        return h, s

    return cross


@pytest.mark.parametrize(("variant", "dropout"), [("normed", 0.0), ("paper", 0.3)])
def test_compiled_with_inductor(variant: str, dropout: float) -> None:
    """Catches a graph break, and an operation that inductor reorders or reuses memory around wrongly."""
    drawn = draw(
        Kind(variant, "rms" if variant == "normed" else "none", (2, 37), 264, 10, 16, dropout=dropout)
    )
    if dropout:
        drawn = replace(
            drawn, rule=drawn.rule._replace(dropout=0.0)
        )  # inductor draws other seeds than eager torch
    want = run(chain(drawn), drawn)
    got = run(torch.compile(chain(drawn), fullgraph=True), drawn)
    for name in want:
        assert (got[name] - want[name]).norm() <= 1e-5 * want[name].norm(), name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_cuda_graph_repeats_both_passes(dropout: float) -> None:
    """Catches a wait for the device or an allocation outside the graph, and a mask that stays the same from
    replay to replay.
    """
    drawn = draw(Kind("paper", "none", (1, 5), 264, 10, 16, stream=torch.bfloat16, dropout=dropout))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run(fused.boundary, drawn)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(fused.boundary, drawn)
    other = draw(Kind("paper", "none", (1, 5), 264, 10, 16, stream=torch.bfloat16, dropout=dropout), seed=1)
    for old, new in ((drawn.h, other.h), (drawn.s, other.s), (drawn.dh, other.dh), (drawn.ds, other.ds)):
        old.data.copy_(new)
    graph.replay()
    one = {name: value.clone() for name, value in captured.items()}
    graph.replay()
    assert all(torch.equal(one[name], captured[name]) for name in one) == (dropout == 0.0)
    if not dropout:
        eager = run(fused.boundary, drawn)
        assert all(torch.equal(one[name], eager[name]) for name in one)
    assert all(value.isfinite().all() for value in captured.values())


def test_more_rows_than_32_bits_of_elements() -> None:
    """Catches an offset that overflows: 2^31 elements of h."""
    if torch.cuda.get_device_properties(0).total_memory < 60e9:
        pytest.skip("needs 60 GB")
    D = 4096
    drawn = draw(Kind(shape=(4,), D=D, U=10, R=16, stream=torch.bfloat16))
    h = torch.zeros(2**31 // D + 8, D, dtype=torch.bfloat16, device="cuda")
    s = torch.zeros_like(h)
    h[-4:], s[-4:] = drawn.h, drawn.s
    with torch.no_grad():
        new_h, new_s = fused.boundary(h, s, drawn.crossing)
        want_h, want_s = fused.boundary(drawn.h, drawn.s, drawn.crossing)
    assert (new_h[-4:] - want_h).norm() <= 1e-2 * want_h.norm()
    assert (new_s[-4:] - want_s).norm() <= 1e-2 * want_s.norm()
