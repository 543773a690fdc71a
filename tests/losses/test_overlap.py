"""The LK loss of a frozen head's answers without their logits, against the equation written out."""

import pytest
import torch
from helpers.frozen_heads import VOCAB, WIDTH, Largest, case
from torch import Tensor

from shadowpeft import losses
from shadowpeft.losses import overlap
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.overlap import lk_loss, lk_losses

TOKENS = 13


def states(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    s_ND, h_ND = (scale * torch.randn(2, TOKENS, WIDTH, dtype=torch.float64, generator=generator)).to(dtype)
    return s_ND.requires_grad_(), h_ND


def written_out(s_ND: Tensor, h_ND: Tensor, head: Head) -> Tensor:
    """The slow reference: whole logits, probabilities, and autograd through their minimum."""
    overlap_N = []
    for s_D, h_D in zip(s_ND, h_ND, strict=True):
        q_V, p_V = (
            capped(
                x_D @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V), head.softcap
            ).softmax(-1)
            for x_D in (s_D, h_D)
        )
        overlap_N.append(torch.minimum(p_V, q_V).sum())
    return -torch.stack(overlap_N).log()


def capped(logits_V: Tensor, softcap: float | None) -> Tensor:
    return logits_V if softcap is None else softcap * torch.tanh(logits_V / softcap)


@pytest.mark.parametrize("at_a_time", [VOCAB * 4, 10**9], ids=["chunks of 4", "one go"])
@pytest.mark.parametrize(("softcap", "bias"), [(None, False), (3.0, True)])
def test_loss_and_gradient_are_the_equation(monkeypatch, at_a_time, softcap, bias):
    """Catches a gradient through the larger of two probabilities, a lost cap, bias or chunk, and a gradient
    scaled wrongly per token.
    """
    monkeypatch.setattr(overlap, "_AT_A_TIME", at_a_time)
    (s_ND, h_ND), head = states(), case(5, bias=bias, softcap=softcap)[2]
    weights_N = torch.arange(1.0, TOKENS + 1, dtype=torch.float64)
    found_N, wanted_N = lk_losses(s_ND, h_ND, head), written_out(s_ND, h_ND, head)
    found, wanted = (torch.autograd.grad((x * weights_N).sum(), s_ND)[0] for x in (found_N, wanted_N))
    torch.testing.assert_close(found_N, wanted_N, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    assert found.abs().min() > 0
    log_p_NV, log_q_NV = (head.logits(x).log_softmax(-1) for x in (h_ND, s_ND))
    torch.testing.assert_close(lk_loss(log_p_NV, log_q_NV), wanted_N, rtol=1e-9, atol=1e-10)


def test_it_is_the_chance_that_a_draft_is_rejected():
    """Catches another overlap than the one that sampling tests a draft by."""
    (s_ND, h_ND), head = states(0.3), case(5)[2]
    p_NV, q_NV = (head.logits(x).softmax(-1) for x in (h_ND, s_ND))
    taken_N = (q_NV * (p_NV / q_NV).clamp(max=1)).sum(-1)
    torch.testing.assert_close(lk_losses(s_ND, h_ND, head).neg().exp(), taken_N)
    assert lk_losses(h_ND, h_ND, head).abs().max() < 1e-12


def test_answers_that_share_next_to_nothing_have_a_finite_gradient():
    """Catches a quotient of two numbers that are 0 in float32."""
    (s_ND, h_ND), head = states(60.0, torch.float32), case(5, torch.float32)[2]
    wanted_N = written_out(s_ND.double(), h_ND.double(), head.to(torch.float64))
    losses_N = lk_losses(s_ND, h_ND, head)
    assert wanted_N.max() > 110, "below what float32 holds"
    torch.testing.assert_close(losses_N.double(), wanted_N, rtol=1e-4, atol=1e-3)
    (gradient,) = torch.autograd.grad(losses_N.sum(), s_ND)
    (wanted,) = torch.autograd.grad(wanted_N.sum(), s_ND)
    torch.testing.assert_close(gradient, wanted, rtol=1e-2, atol=1e-3)


def test_no_batch_of_logits_is_held(monkeypatch):
    """Catches logits of more tokens than allowed in hand at once, and a gradient that reaches the answer."""
    monkeypatch.setattr(overlap, "_AT_A_TIME", VOCAB * 4)
    (s_ND, h_ND), head = states(), case(5)[2]
    with Largest() as seen:
        lk_losses(s_ND, h_ND.requires_grad_(), head).sum().backward()
    assert seen.elements == VOCAB * WIDTH > 4 * VOCAB, "the head itself"
    assert seen.products == 3 * 4, "each chunk: both sides' logits, and one product back"
    assert h_ND.grad is None


def test_both_ways_of_a_batch_are_one():
    """Catches a kind that one of the two ways does not pass on."""
    generator = torch.Generator().manual_seed(1)
    h, s = (torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=generator) for _ in range(2))
    labels, head = torch.randint(0, VOCAB, (2, 5), generator=generator), case(5, bias=True)[2]
    for count in (None, 17):
        lean = losses.frozen_head_divergence(h, s, head, labels, None, count, "lk")
        plain = losses.next_token_divergence(head.logits(h), head.logits(s), labels, None, count, "lk")
        torch.testing.assert_close(lean, plain)
        assert lean != losses.frozen_head_divergence(h, s, head, labels, None, count)


def test_the_operation_of_a_compiled_graph_is_one_to_torch():
    """Catches a shape told to the compiler that is another one at run time, and a graph that computes
    otherwise.
    """
    s, h, weight = torch.randn(7, WIDTH), torch.randn(7, WIDTH), torch.randn(VOCAB, WIDTH)
    for softcap, differentiate in ((None, True), (3.0, True), (None, False)):
        given = (
            s.clone().requires_grad_(differentiate),
            h,
            weight,
            torch.randn(VOCAB),
            softcap,
            differentiate,
        )
        torch.library.opcheck(overlap._operation, given, test_utils=("test_schema", "test_faketensor"))
    torch._dynamo.reset()
    compiled = torch.compile(lk_losses, backend="aot_eager", fullgraph=True)
    x, head = s.clone().requires_grad_(), Head(weight)
    results = [torch.autograd.grad(run(x, h, head).sum(), x)[0] for run in (compiled, lk_losses)]
    torch.testing.assert_close(*results)
