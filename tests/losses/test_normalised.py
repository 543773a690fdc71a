"""The losses of both heads as the Trainer normalises them, eager and compiled."""

import math

import pytest
import torch
from helpers.frozen_heads import VOCAB, WIDTH, Largest, case
from helpers.tiny import qwen3_config
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._pytree import tree_leaves

from shadowpeft import losses
from shadowpeft.losses import linear_ce


def two_losses(h, s, targets, head):
    own, shadow = losses.frozen_head_losses((h[None], s[None]), head, None, targets[None], None)
    return own + 0.5 * shadow, shadow


def test_tokens_without_a_label_get_no_logits():
    """Catches a prompt's tokens going through the head, which may be most of a batch."""
    x, targets, head = case(40)
    targets[3:] = -100
    with Largest() as seen:
        two_losses(x, x, targets, head)[0].backward()
    assert seen.elements == VOCAB * WIDTH > 2 * 3 * VOCAB, "the head itself"


def test_compiled_whole_and_for_many_lengths(monkeypatch):
    """Catches a graph break, and a graph for each length of batch: a new one is due only where the number of
    chunks changes.
    """
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 32 * VOCAB)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(two_losses, fullgraph=True, backend=counter)
    for tokens in (33, 34, 35, 40, 41, 44, 46):  # three chunks for both states together
        x, targets, head = case(tokens, torch.float32)
        results = []
        for run in (two_losses, compiled):
            h, s = x.detach().clone().requires_grad_(), x.detach().flip(0).requires_grad_()
            loss, shadow = run(h, s, targets, head)
            loss.backward()
            results.append((loss, shadow, h.grad, s.grad))
        torch.testing.assert_close(*results)
    assert counter.frame_count <= 3


def test_compiled_forward_hands_no_logits_to_the_backward_pass(monkeypatch):
    """Catches a partition that keeps the logits of every chunk, or moves the second product to the backward
    pass.
    """
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 32 * VOCAB)
    torch._dynamo.reset()
    graphs = {}

    def keep(name):
        def compiler(graph, _):
            graphs[name] = graph
            return graph

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
    )
    x, targets, head = case(45, torch.float32)
    with pytest.warns(UserWarning, match="boxed"):
        torch.compile(two_losses, fullgraph=True, backend=backend)(x, x, targets, head)[0].backward()
    nodes = {name: list(graph.graph.nodes) for name, graph in graphs.items()}
    handed = [node.meta["val"].numel() for node in nodes["backward"] if node.op == "placeholder"]
    assert max(handed) == 2 * 45 * WIDTH
    assert not [node for graph in nodes.values() for node in graph if "mm" in str(node.target)], (
        "the products are inside one operation"
    )
    values = [value for node in nodes["forward"] for value in tree_leaves(node.meta.get("val"))]
    sizes = [value.numel() for value in values if isinstance(value, torch.Tensor)]
    assert max(sizes) == VOCAB * WIDTH, "the head itself"


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_without_a_label(compiled):
    """As the plain way: a mean over nothing is not a number, a sum is 0, and neither sends a gradient."""
    head = case(4, torch.float32)[2]
    for count, expected in ((None, math.nan), (3, 0.0)):
        x = torch.randn(2, 4, WIDTH, requires_grad=True)
        labels = torch.full((2, 4), -100)

        def step(x, labels=labels, count=count):
            return losses.frozen_head_losses((x, x), head, labels, None, count)

        run = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
        loss = sum(run(x))
        usual = losses.next_token_loss(head.logits(x), labels, None, count)
        loss.backward()
        assert loss.item() == pytest.approx(expected, nan_ok=True)
        assert usual.item() == pytest.approx(expected, nan_ok=True)
        assert x.grad.eq(0).all()


def test_no_gradient_reaches_the_attached_answer():
    """Catches an answer that learns to be easy to imitate."""
    generator = torch.Generator().manual_seed(1)
    h, s = (
        torch.randn(2, 5, WIDTH, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    labels = torch.randint(0, VOCAB, (2, 5), generator=generator)
    head = case(5, bias=True)[2]
    classes, config = torch.tensor([1, 0]), qwen3_config(num_labels=VOCAB)
    for loss in (
        losses.frozen_head_divergence(h, s, head, labels, None, None),
        losses.next_token_divergence(head.logits(h), head.logits(s), labels, None, None),
        losses.classification_divergence(head.logits(h[:, 0]), head.logits(s[:, 0]), classes, config, None),
    ):
        h.grad = s.grad = None
        loss.backward()
        assert h.grad is None
        assert s.grad.abs().sum() > 0


@pytest.mark.parametrize(("mode", "most"), [("bf16", 2e-2), ("autocast", 2e-2)])
def test_in_bf16_it_is_as_exact_as_whole_logits(mode, most):
    """Catches a softmax in bf16, and operands of two types under autocast."""
    generator = torch.Generator().manual_seed(2)
    h, s = torch.randn(2, 1, 300, WIDTH, generator=generator)
    head = case(300, torch.float32, bias=True, spread=WIDTH**-0.5)[2]
    labels = torch.randint(0, VOCAB, (1, 300), generator=generator)
    wanted = losses.next_token_divergence(
        *(head.to(torch.float64).logits(x.double()) for x in (h, s)), labels, None, None
    )
    dtype = torch.float32 if mode == "autocast" else torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        x = s.to(dtype).requires_grad_()
        found = losses.frozen_head_divergence(h.to(dtype), x, head.to(dtype), labels, None, None)
    found.backward()
    assert found.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert found.item() == pytest.approx(wanted.item(), rel=most)


def test_a_compiled_batch_without_a_label():
    torch._dynamo.reset()
    head = case(4, torch.float32, bias=True)[2]
    s = torch.randn(2, 4, WIDTH, requires_grad=True)
    labels = torch.full((2, 4), -100)

    def step(s):
        return losses.frozen_head_divergence(s.flip(0), s, head, labels, None, None)

    loss = torch.compile(step, backend="aot_eager", fullgraph=True)(s)
    loss.backward()
    assert loss.isnan()
    assert s.grad.eq(0).all()
