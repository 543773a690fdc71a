"""The cross-entropy of a frozen head without its logits, equal to the plain one in value and gradient."""

import math

import pytest
import torch
from helpers.frozen_heads import VOCAB, WIDTH, Largest, case, plain, value_and_gradient

from shadowpeft.losses import linear_ce
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.linear_ce import token_losses


@pytest.fixture(params=[1, 6, 1000], ids=lambda rows: f"{rows}-at-a-time")
def at_a_time(request, monkeypatch):
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", request.param * VOCAB + 3)
    return request.param


@pytest.mark.parametrize("tokens", [0, 1, 6, 7, 13])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, None), (False, 3.0), (True, 3.0)])
def test_loss_and_gradient_equal_the_plain_ones(tokens, bias, softcap, at_a_time):
    """Catches a chunk left out or counted twice, a wrong slope of the cap, an ignored token that counts."""
    given = case(tokens, bias=bias, softcap=softcap)
    both = (value_and_gradient(function, *given) for function in (token_losses, plain))
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finite_differences_agree(softcap, at_a_time):
    x, targets, head = case(5, bias=True, softcap=softcap)
    assert torch.autograd.gradcheck(lambda x: token_losses(x, targets, head), (x,))


def test_a_second_derivative_is_refused():
    """Catches a Hessian that silently lacks the derivative of the derivative."""
    x, targets, head = case(5)
    (gradient,) = torch.autograd.grad(token_losses(x, targets, head).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate"):
        gradient.sum().backward()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("mode", ["bf16", "autocast", "bf16 under autocast", "mixed under autocast"])
def test_bf16_is_as_exact_as_the_plain_way(mode, softcap):
    """Error against float32, in loss and gradient, stays within 1.25 times what whole bf16 logits have."""
    x, targets, head = case(600, torch.float32, bias=True, softcap=softcap)
    truth = value_and_gradient(plain, x, targets, head)
    state = torch.bfloat16 if mode.startswith("bf16") else torch.float32
    x = x.to(state)
    # The inputs' own rounding is not the loss's doing.
    if mode != "autocast":
        head = head.to(torch.bfloat16)
        truth = value_and_gradient(plain, x.float(), targets, head.to(torch.float32))
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in mode):
        found = value_and_gradient(token_losses, x, targets, head)
        usual = value_and_gradient(plain, x, targets, head)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == state
    for ours, theirs, exact in zip(found, usual, truth, strict=True):
        assert (ours - exact).norm() <= 1.25 * (theirs - exact).norm()


def test_a_token_already_known_keeps_its_small_gradient():
    """Catches p - 1 taken of a p rounded to bf16, where nothing of a gradient of 1 % would be left."""
    weight = torch.zeros(VOCAB, WIDTH, dtype=torch.bfloat16)
    weight[0, 0] = 1
    x = torch.zeros(1, WIDTH, dtype=torch.bfloat16)
    x[0, 0] = math.log(100 * (VOCAB - 1))  # p_0 is 0.99
    targets = torch.zeros(1, dtype=torch.long)
    _, found = value_and_gradient(token_losses, x, targets, Head(weight))
    _, exact = value_and_gradient(plain, x.float(), targets, Head(weight.float()))
    assert abs(found[0, 0] / exact[0, 0] - 1) < 2**-7


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_more_logits_are_held_than_allowed(softcap, monkeypatch):
    """Catches a copy of all logits anywhere in forward or backward."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 10 * VOCAB)
    given = case(95, softcap=softcap)
    with Largest() as seen:
        value_and_gradient(token_losses, *given)
    assert max(95 * WIDTH, VOCAB * WIDTH) <= seen.elements <= 10 * VOCAB + VOCAB * WIDTH
    with Largest() as whole:
        value_and_gradient(plain, *given)
    assert whole.elements == 95 * VOCAB, "the measure itself sees whole logits"


def test_without_gradient_half_the_products_are_saved(monkeypatch):
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 10 * VOCAB)
    given = case(40)
    for context, products in ((torch.enable_grad(), 8), (torch.no_grad(), 4), (torch.inference_mode(), 4)):
        with context, Largest() as seen:
            each = token_losses(*given)
        assert seen.products == products
        torch.testing.assert_close(each.detach(), plain(*given).detach())


def test_the_operation_of_a_compiled_graph_is_one_to_torch():
    """Catches a shape told to the compiler that is another one at run time, and a gradient that compiled code
    would get wrong.
    """
    x, targets, head = case(7, torch.float32, bias=True)
    aimed = targets != -100
    given = (x, torch.where(aimed, targets, 0), aimed, head.weight_VD, head.bias_V)
    for softcap, differentiate in ((None, True), (3.0, True), (None, False)):
        tensors = given if differentiate else (x.detach(), *given[1:])
        torch.library.opcheck(
            linear_ce._operation,
            (*tensors, softcap, differentiate),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_second_derivatives_are_refused(compiled):
    """Catches second derivatives that are silently zero."""
    x, targets, head = case(5, torch.float32)
    run = torch.compile(token_losses, backend="aot_eager", fullgraph=True) if compiled else token_losses

    def twice():
        (gradient,) = torch.autograd.grad(run(x, targets, head).sum(), x, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError):
        twice()
