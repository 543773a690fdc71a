"""The divergence of a frozen head's answers without their logits, against the equation written out."""

import pytest
import torch

from shadowpeft.losses import divergence
from shadowpeft.losses.divergence import divergences
from shadowpeft.losses.frozen_head import Head

TOKENS, WIDTH, VOCABULARY = 13, 8, 31


@pytest.fixture
def states() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    s_ND, h_ND = torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    return s_ND.requires_grad_(), h_ND


def some_head(softcap: float | None = None, bias: bool = False) -> Head:
    generator = torch.Generator().manual_seed(1)
    weight_VD = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64, generator=generator)
    return Head(
        weight_VD,
        torch.randn(VOCABULARY, dtype=torch.float64, generator=generator) if bias else None,
        softcap,
    )


def probabilities(x_ND: torch.Tensor, head: Head, temperature: float) -> torch.Tensor:
    logits_NV = x_ND @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)
    if head.softcap is not None:
        logits_NV = head.softcap * torch.tanh(logits_NV / head.softcap)
    return torch.exp(logits_NV / temperature) / torch.exp(logits_NV / temperature).sum(-1, keepdim=True)


@pytest.mark.parametrize("at_a_time", [VOCABULARY * 4, 10**9], ids=["chunks of 4", "one go"])
@pytest.mark.parametrize("top_k", [None, 5, VOCABULARY, VOCABULARY + 9])
@pytest.mark.parametrize(("temperature", "softcap", "bias"), [(1.0, None, False), (2.5, 3.0, True)])
def test_divergence_and_gradient_are_the_equations(
    states, monkeypatch, at_a_time, top_k, temperature, softcap, bias
):
    """Catches a wrong direction of the divergence, a lost temperature, cap, bias or chunk, and a gradient
    scaled wrongly per token.
    """
    monkeypatch.setattr(divergence, "_AT_A_TIME", at_a_time)
    (s_ND, h_ND), head = states, some_head(softcap, bias)
    weights_N = torch.arange(1.0, TOKENS + 1, dtype=torch.float64)
    losses_N = divergences(s_ND, h_ND, head, temperature, top_k)
    (gradient,) = torch.autograd.grad((losses_N * weights_N).sum(), s_ND)

    p_NV, q_NV = probabilities(h_ND, head, temperature), probabilities(s_ND, head, temperature)
    if top_k is not None and top_k < VOCABULARY:
        chosen_NK = p_NV.argsort(-1, descending=True)[:, :top_k]
        p_NV, q_NV = (
            torch.cat([x.gather(1, chosen_NK), 1 - x.gather(1, chosen_NK).sum(1, keepdim=True)], 1)
            for x in (p_NV, q_NV)
        )
    wanted_N = temperature**2 * (p_NV * (p_NV / q_NV).log()).sum(-1)
    (wanted_gradient,) = torch.autograd.grad((wanted_N * weights_N).sum(), s_ND)
    torch.testing.assert_close(losses_N, wanted_N.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-8, atol=1e-10)


def test_divergence_is_0_at_the_base_and_less_when_coarser(states):
    """Catches a divergence from something other than the base, and a rest that is left out instead of taken
    together.
    """
    (s_ND, h_ND), head = states, some_head()
    assert divergences(h_ND, h_ND, head).abs().max() < 1e-12
    whole_N, coarse_N = divergences(s_ND, h_ND, head), divergences(s_ND, h_ND, head, top_k=3)
    assert (coarse_N < whole_N).all()
    assert (coarse_N > 0).all()


def test_divergence_never_holds_a_batch_of_logits(states, monkeypatch):
    """Catches logits of more tokens than allowed in hand at once, and teacher's logits that keep a graph."""
    monkeypatch.setattr(divergence, "_AT_A_TIME", VOCABULARY * 4)
    (s_ND, h_ND), head = states, some_head()
    seen: list[int] = []
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, x_nD: seen.append(len(x_nD)) or logits(self, x_nD))
    losses_N = divergences(s_ND, h_ND.requires_grad_(), head)
    losses_N.sum().backward()
    assert max(seen) == 4
    assert sum(seen) == 2 * TOKENS, "both sides once, and none a second time in the backward pass"
    assert h_ND.grad is None


def test_the_operation_of_a_compiled_graph_is_one_to_torch():
    """Catches a shape told to the compiler that is another one at run time."""
    s, h, weight = torch.randn(7, WIDTH), torch.randn(7, WIDTH), torch.randn(VOCABULARY, WIDTH)
    for softcap, differentiate in ((None, True), (3.0, True), (None, False)):
        given = (
            s.clone().requires_grad_(differentiate),
            h,
            weight,
            torch.randn(VOCABULARY),
            softcap,
            1.0,
            differentiate,
        )
        torch.library.opcheck(divergence._operation, given, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("compiled", [False, True])
def test_second_derivatives_are_refused(compiled):
    """Catches second derivatives that are silently zero."""
    s, h, head = (
        torch.randn(5, WIDTH, requires_grad=True),
        torch.randn(5, WIDTH),
        Head(torch.randn(VOCABULARY, WIDTH), None, None),
    )
    run = torch.compile(divergences, backend="aot_eager", fullgraph=True) if compiled else divergences

    def twice():
        (gradient,) = torch.autograd.grad(run(s, h, head).sum(), s, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError):
        twice()
