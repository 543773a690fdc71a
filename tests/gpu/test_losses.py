"""The loss of a frozen head at its real size, which only a GPU shows: a vocabulary of 151,936 in bf16."""

import pytest
import torch
from torch import nn

from shadowpeft.losses.frozen_head import LOGITS_AT_A_TIME, Head
from shadowpeft.losses.normalised import frozen_head_losses, next_token_loss

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

VOCAB, WIDTH = 151_936, 1024


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCAB, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    head.weight.normal_(std=2 * WIDTH**-0.5)
    return head


def batch(tokens):
    generator = torch.Generator("cuda").manual_seed(tokens)
    h, s = (
        torch.randn(2, tokens // 2, WIDTH, device="cuda", dtype=torch.bfloat16, generator=generator)
        for _ in range(2)
    )
    labels = torch.randint(VOCAB, (2, tokens // 2), device="cuda", generator=generator)
    labels[0, : tokens // 8] = -100
    return h, s, labels


def plain(h, s, head, labels):
    return next_token_loss(head(h), labels, None, None) + 0.5 * next_token_loss(head(s), labels, None, None)


def swept(h, s, head, labels):
    own, shadow = frozen_head_losses((h, s), Head(head.weight), labels, None, None)
    return own + 0.5 * shadow


def compiled(h, s, head, labels):
    return torch.compile(swept, fullgraph=True)(h, s, head, labels)


def step(loss_of, h, s, head, labels):
    h, s = h.detach().requires_grad_(), s.detach().requires_grad_()
    loss = loss_of(h, s, head, labels)
    loss.backward()
    return loss.detach(), h.grad, s.grad


@pytest.mark.parametrize("loss_of", [swept, compiled])
def test_as_exact_as_whole_logits(loss_of, head):
    """Loss and gradients against float32: at most 1.5 times the error of the plain way (one more rounding is
    a factor of 1.4).
    """
    h, s, labels = batch(514)
    wide = nn.Linear(WIDTH, VOCAB, bias=False, device="meta").requires_grad_(False)
    wide.weight = nn.Parameter(head.weight.float(), requires_grad=False)
    truth = step(plain, h.float(), s.float(), wide, labels)
    found, usual = step(loss_of, h, s, head, labels), step(plain, h, s, head, labels)
    for ours, theirs, exact in zip(found, usual, truth, strict=True):
        assert (ours.float() - exact).norm() <= 1.5 * (theirs.float() - exact).norm() + 1e-6 * exact.norm()


def peak(loss_of, *given):
    step(loss_of, *given)  # compiled, and the workspaces of matrix products taken
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss_of, *given)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("loss_of", [swept, compiled])
def test_memory_is_that_of_the_logits_in_hand(loss_of, head):
    """Catches a copy of all logits of one head (1.2 GB in bf16 at 4,096 tokens): the bound is 8 bytes for
    each logit in hand.
    """
    h, s, labels = batch(4096)
    states = 2 * h.nbytes
    assert peak(loss_of, h, s, head, labels) < 8 * LOGITS_AT_A_TIME + 6 * states
    assert peak(loss_of, h, s, head, labels) < 0.25 * peak(plain, h, s, head, labels)
