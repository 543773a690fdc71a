"""From logits to loss and derivative in one kernel: compiled on a GPU, elsewhere in the interpreter."""

import pytest
import torch
from helpers.boundary_cases import DEVICE
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.poison import poisoned  # noqa: F401 - a fixture

from shadowpeft.losses import linear_ce
from shadowpeft.losses.frozen_head import Head

pytest.importorskip("triton")

from shadowpeft.losses import linear_ce_triton

pytestmark = ignore_overflow


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "classes"), [(0, 5), (1, 1), (3, 7), (5, 4096), (2, 4097), (3, 9001)])
def test_loss_and_derivative_are_those_of_log_softmax(rows: int, classes: int, dtype: torch.dtype) -> None:
    """Catches columns beyond a tile that are left out or counted twice, and a target whose 1 is not taken
    off.
    """
    torch.manual_seed(rows)
    z = (4 * torch.randn(rows, classes, dtype=torch.float64)).to(DEVICE, dtype)
    y = torch.randint(classes, (rows,), device=DEVICE)
    if rows > 1:
        z[0, y[0]] = 30.0  # sure
        z[1, : classes // 2] = -torch.inf  # ruled out
        y[1] = classes - 1
    exact = torch.log_softmax(z.double(), -1)
    loss = -exact.gather(1, y[:, None])[:, 0]
    slope = exact.exp()
    slope[torch.arange(rows), y] = exact.gather(1, y[:, None])[:, 0].expm1()
    found = linear_ce_triton.loss_and_derivative(z, y)
    torch.testing.assert_close(found.double(), loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        z.double(), slope, rtol=1e-5 if dtype == torch.float32 else 5e-3, atol=5e-7
    )  # four roundings of 1


def test_a_nan_among_the_logits_is_a_nan_of_the_loss() -> None:
    """Catches a maximum that steps over it: training would go on as if nothing were wrong."""
    z = torch.randn(2, 50, device=DEVICE)
    z[1, 20] = torch.nan
    found = linear_ce_triton.loss_and_derivative(z, torch.tensor([3, 4], device=DEVICE))
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("bias", [False, True])
def test_the_training_loss_takes_the_kernel_where_it_can(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a kernel that is never called, and one whose results go elsewhere than the plain way's."""
    torch.manual_seed(0)
    weight, offset = torch.randn(37, 8, device=DEVICE), torch.randn(37, device=DEVICE) if bias else None
    x, y = torch.randn(9, 8, device=DEVICE), torch.randint(37, (9,), device=DEVICE)
    y[4] = linear_ce.IGNORED
    calls: list[int] = []
    whole = linear_ce_triton.loss_and_derivative
    monkeypatch.setattr(
        linear_ce_triton, "loss_and_derivative", lambda z, y: (calls.append(len(z)), whole(z, y))[1]
    )
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 4 * 37)
    results = []
    for kernel in (True, False):
        monkeypatch.setattr(linear_ce, "_has_kernel", lambda logits_nV, kernel=kernel: kernel)
        given = x.clone().requires_grad_()
        losses = linear_ce.token_losses(given, y, Head(weight, offset))
        losses.square().sum().backward()
        results.append((losses.detach(), given.grad))
    assert calls == [3, 3, 3]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
