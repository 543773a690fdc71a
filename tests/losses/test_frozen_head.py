"""What the sweeps over a frozen head share: the head, the chunks, and the scaling of the derivative."""

import pytest
import torch
from helpers.families import tiny_model
from helpers.frozen_heads import case
from torch import Tensor

from shadowpeft import arch
from shadowpeft.losses import frozen_head
from shadowpeft.losses.frozen_head import Head


@pytest.mark.parametrize("model_type", ["gemma2", "gptj", "qwen3"])
@torch.no_grad()
def test_the_head_of_a_base_gives_its_logits(model_type: str) -> None:
    """Catches a lost cap (Gemma 2) or bias (GPT-J)."""
    base = tiny_model(model_type)
    x = torch.randn(5, base.config.hidden_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Head.of(base).logits(x), arch.logits(base, x))


def test_logits_are_float32_at_least() -> None:
    """Catches a softmax of bf16 logits, and one of float64 logits in float32."""
    x, _, head = case(5, bias=True, softcap=3.0)
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        assert head.to(dtype).logits(x.to(dtype)).dtype == wide
    flat = head.log_probabilities(x, temperature=2.0)
    torch.testing.assert_close(flat, torch.log_softmax(head.logits(x) / 2, -1))


def test_autocast_casts_the_head_once() -> None:
    """Catches a bias or a state left in its type, and a cast without autocast."""
    x, _, head = case(5, torch.float32, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        cast, (state,) = frozen_head.ready(head, x)
    assert cast.weight_VD.dtype == cast.bias_V.dtype == state.dtype == torch.bfloat16
    same, (state,) = frozen_head.ready(head, x)
    assert same is head
    assert state is x


@pytest.mark.parametrize(
    ("limit", "tokens"), [(101 * 7 + 100, 7), (1, 1), (2**40, frozen_head.CACHED_LOGITS // 101)]
)
def test_as_many_tokens_as_the_limit_allows(limit: int, tokens: int) -> None:
    """Catches no token at all for a large vocabulary, and more logits on a CPU than stay in its cache."""
    assert frozen_head.tokens_at_a_time(case(1)[2], limit) == tokens


@pytest.mark.parametrize("tokens", [0, 1, 4, 9])
def test_a_sweep_sees_each_token_once_and_no_autocast(tokens: int) -> None:
    """Catches a chunk left out, rows of two tensors that do not belong together, and autocast within."""
    seen: list[int] = []

    def sweep(x_nD: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch.is_autocast_enabled("cpu")
        seen.append(len(x_nD))
        return y_n * x_nD[:, 0], 2 * x_nD

    x, y = torch.randn(tokens, 3), torch.arange(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        losses, derivatives = frozen_head.swept(sweep, (x, y), at_a_time=4)
    assert torch.equal(losses, y * x[:, 0])
    assert torch.equal(derivatives, 2 * x)
    assert max(seen) <= 4


@pytest.mark.parametrize("counted", [None, torch.tensor([True, False, True])], ids=["by gradient", "given"])
def test_tokens_that_do_not_count_send_nothing(counted: Tensor | None) -> None:
    """Catches a NaN of a token without a loss that reaches its gradient."""
    x = torch.randn(3, 2, requires_grad=True)
    derivative = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    losses = frozen_head.apply(x, counted, lambda x: (x.sum(1), derivative))
    losses.backward(torch.tensor([2.0, 0.0, 3.0]))
    assert x.grad.tolist() == [[2.0, 4.0], [0.0, 0.0], [9.0, 12.0]]


def test_without_grad_no_derivative_is_wanted() -> None:
    x = torch.randn(3, requires_grad=True)
    assert frozen_head.wants_gradient(x)
    assert not frozen_head.wants_gradient(x.detach())
    with torch.no_grad():
        assert not frozen_head.wants_gradient(x)
