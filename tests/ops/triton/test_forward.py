"""The kernels of the forward pass alone, as inference runs them: no gradient is asked for."""

import pytest
import torch
from helpers.boundary_cases import KINDS, Kind, draw, in_float64
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture

from shadowpeft.ops import reference

pytest.importorskip("triton")

from shadowpeft.ops.triton import op

pytestmark = ignore_overflow


@pytest.mark.parametrize(("variant", "norm"), KINDS)
@torch.no_grad()
def test_results_without_gradients_are_the_reference_s(variant: str, norm: str) -> None:
    """Catches a result that is right only where a backward pass follows, and a column that nobody wrote."""
    drawn = draw(Kind(variant, norm, shape=(2, 9), D=131, U=10, R=17))
    exact = in_float64(drawn)
    found = op.boundary(drawn.h, drawn.s, drawn.crossing)
    wanted = reference.boundary(exact.h, exact.s, exact.crossing)
    for result, truth in zip(found, wanted, strict=True):
        assert result.dtype == torch.float32
        assert ((result.double() - truth).norm() / truth.norm()).item() < 2e-6


@torch.no_grad()
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Catches a sum over rows of a tile in place of columns, and the last row of a batch left out."""
    drawn = draw(Kind("normed", "layer", shape=(7,), D=72))
    together = op.boundary(drawn.h, drawn.s, drawn.crossing)
    for row in (0, 6):
        alone = op.boundary(drawn.h[row : row + 1], drawn.s[row : row + 1], drawn.crossing)
        for result, single in zip(together, alone, strict=True):
            torch.testing.assert_close(result[row : row + 1], single, rtol=1e-6, atol=1e-6)
