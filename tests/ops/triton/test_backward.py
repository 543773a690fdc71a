"""The kernels of the backward pass, after those of the forward pass: results and every gradient.

They are compared with the reference; compiled on a GPU, elsewhere in the interpreter.
"""

import pytest
import torch
from helpers.boundary_cases import (
    BFLOAT16,
    FLOAT32,
    KINDS,
    Kind,
    assert_as_exact,
    assert_as_exact_over_draws,
    draw,
    errors,
    in_float64,
    run,
    trained,
)
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture

from shadowpeft.ops import Crossing, reference

pytest.importorskip("triton")

from shadowpeft.ops.triton import op, parts

pytestmark = ignore_overflow


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
@pytest.mark.parametrize(("variant", "norm"), KINDS)
def test_results_and_every_gradient(variant: str, norm: str, halves: str) -> None:
    """Catches a wrong term anywhere, a tile's edge, a split that is counted twice, memory that nobody wrote,
    tf32.
    """
    assert_as_exact(op.boundary, draw(Kind(variant, norm, halves=halves)), **FLOAT32)


@pytest.mark.parametrize(
    ("shape", "D", "U", "R"),
    [((1, 1), 7, 1, 1), ((2, 33), 131, 10, 16), ((2, 1, 3), 64, 17, 33), ((5, 7), 16, 40, 2)],
)
@pytest.mark.parametrize(("variant", "norm"), [("normed", "layer"), ("peft", "none")])
def test_any_size(variant: str, norm: str, shape: tuple[int, ...], D: int, U: int, R: int) -> None:
    """Catches a size that only multiples of a tile fit: one row, one column more than a tile, U beside R, U
    and R past one tile.
    """
    # A sum of a few numbers that nearly cancel may lose digits that the reference by chance keeps; a wrong
    # index would lose all.
    assert_as_exact(op.boundary, draw(Kind(variant, norm, shape, D, U, R)), times=3.0, floor=3e-5)


@pytest.mark.parametrize(("variant", "norm"), KINDS)
def test_bfloat16(variant: str, norm: str) -> None:
    """Catches sums taken in bfloat16, or a value rounded once more than in the reference."""
    assert_as_exact(
        op.boundary, draw(Kind(variant, norm, (2, 20), 100, 10, 16, stream=torch.bfloat16)), **BFLOAT16
    )


def test_a_gate_of_large_hidden_states_keeps_its_digits() -> None:
    """Catches G's hidden values rounded to one bfloat16 before its second matrix: in `peft` nearly all of
    these two errors.
    """
    drawn = draw(Kind("peft", "none", (parts.FEW_ROWS + 44,), 140, 10, 16, stream=torch.bfloat16))
    truth = run(reference.boundary, in_float64(drawn))
    mine, theirs = (errors(run(boundary, drawn), truth) for boundary in (op.boundary, reference.boundary))
    for name in (
        "d_gate_in_UD",
        "d_gate_out_DU",
    ):  # a fifth; with one rounding, as in the reference, 0.7 to 1.0
        assert mine[name] <= 0.5 * theirs[name], (name, mine[name], theirs[name])


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
def test_more_rows_than_decoding_has(halves: str) -> None:
    """Catches a tile that only a long batch uses."""
    kind = Kind("normed", "rms", (parts.FEW_ROWS + 9,), 140, 10, 16, halves, stream=torch.bfloat16)
    assert_as_exact(op.boundary, draw(kind), **BFLOAT16)


@pytest.mark.parametrize(("variant", "norm"), [("normed", "rms"), ("paper", "none"), ("peft", "none")])
def test_float32_weights_and_state_beside_a_bfloat16_stream(variant: str, norm: str) -> None:
    """Catches a gradient in the stream's type: under autocast weights and their gradients stay float32."""
    kind = Kind(
        variant, norm, (2, 20), 100, 10, 16, stream=torch.bfloat16, weights=torch.float32, state=torch.float32
    )
    assert_as_exact(op.boundary, draw(kind), **BFLOAT16, autocast=True)


@pytest.mark.parametrize(("variant", "norm"), KINDS)
def test_float32_weights_beside_bfloat16_states(variant: str, norm: str) -> None:
    """Catches a kernel that reads weights in the stream's type alone, and gradients that are rounded to it:
    without autocast everything but the trained weights is bfloat16.
    """
    drawn = draw(Kind(variant, norm, (2, 20), 100, 10, 16, stream=torch.bfloat16, weights=torch.float32))
    assert_as_exact(op.boundary, drawn, **BFLOAT16)
    found = run(reference.boundary, drawn)
    assert {found[f"d_{name}"].dtype for name in trained(drawn)} == {torch.float32}


def counted_twice(h: torch.Tensor, s: torch.Tensor, crossing: Crossing) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross rightly, but add one gradient up twice."""
    assert crossing.update_w is not None
    gate_in_UD = crossing.update_w.gate_in_UD
    twice = gate_in_UD.detach() + 2 * (gate_in_UD - gate_in_UD.detach())
    return reference.boundary(h, s, crossing._replace(update_w=crossing.update_w._replace(gate_in_UD=twice)))


def too_large(h: torch.Tensor, s: torch.Tensor, crossing: Crossing) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross, and be two per cent off."""
    new_h, new_s = reference.boundary(h, s, crossing)
    return 1.02 * new_h, new_s


def test_several_draws_tell_a_wrong_boundary_from_rounding() -> None:
    """Catches a judgement over draws that no error can fail."""
    kind = Kind("peft", "none", (2, 20), 40, 5, 3, stream=torch.bfloat16, weights=torch.float32)
    assert_as_exact_over_draws(reference.boundary, kind, times=1.25, floor=1e-4)
    for wrong, name in ((counted_twice, "d_gate_in_UD"), (too_large, "new_h")):
        with pytest.raises(AssertionError, match=name):
            assert_as_exact_over_draws(wrong, kind, times=1.25, floor=1e-4)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    """Catches a variance from sums about zero."""
    for kind in (Kind("paper", "none"), Kind("normed", "layer")):
        drawn = draw(kind)
        drawn.h += 3000
        # Means of a thousand deviations cost the product that the norm is folded into three digits; the
        # variance would lose all.
        assert_as_exact(op.boundary, drawn, times=1.0, floor=1e-3)


def test_every_run_is_equal_to_the_last_bit() -> None:
    """Catches a race, and sums in an order of chance."""
    drawn = draw(Kind(shape=(2, 40), D=200, U=10, R=16))
    one, two = run(op.boundary, drawn), run(op.boundary, drawn)
    assert all(torch.equal(one[name], two[name]) for name in one)
