"""The loss of a frozen head without its logits: equal to the plain one in value and gradient, and never holding what it must not."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.families import perturb, tiny_model
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shadowpeft import ConfigError, ShadowConfig, arch, attach, losses
from shadowpeft.losses import linear_ce
from shadowpeft.losses.frozen_head import Head

VOCAB, WIDTH = 101, 12


def case(tokens, dtype=torch.float64, bias=False, spread=1.0):
    """Draw hidden states, targets (a third ignored, the last one not), and a head whose logits spread about as given."""
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(0, VOCAB, (tokens,), generator=generator)
    targets[torch.arange(tokens) % 3 == 1] = -100
    return (
        draw(tokens, WIDTH).requires_grad_(),
        targets,
        draw(VOCAB, WIDTH) * spread,
        draw(VOCAB) if bias else None,
    )


def plain(x, targets, weight, bias=None, softcap=None):
    """Compute the same losses from whole logits, in float32 at least."""
    logits = F.linear(x, weight, bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="none")


def token_losses(x, targets, weight, bias=None, softcap=None):
    return linear_ce.token_losses(x, targets, Head(weight, bias, softcap))


def value_and_gradient(function, x, *rest, **options):
    """Weight each token's loss by another number, so that no two gradients can be mixed up."""
    x = x.detach().clone().requires_grad_()
    each = function(x, *rest, **options)
    (each * torch.linspace(0.5, 2.0, len(each), dtype=each.dtype)).sum().backward()
    return each.detach(), x.grad


@pytest.fixture(params=[1, 6, 1000], ids=lambda rows: f"{rows}-at-a-time")
def at_a_time(request, monkeypatch):
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", request.param * VOCAB + 3)
    return request.param


@pytest.mark.parametrize("tokens", [0, 1, 6, 7, 13])
@pytest.mark.parametrize(("bias", "softcap"), [(False, None), (True, None), (False, 3.0), (True, 3.0)])
def test_loss_and_gradient_equal_the_plain_ones(tokens, bias, softcap, at_a_time):
    """Catches a chunk left out or counted twice, a wrong slope of the cap, an ignored token that counts."""
    given = case(tokens, bias=bias)
    for found, expected in zip(
        value_and_gradient(token_losses, *given, softcap=softcap),
        value_and_gradient(plain, *given, softcap=softcap),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_finite_differences_agree(softcap, at_a_time):
    x, targets, weight, bias = case(5, bias=True)
    assert torch.autograd.gradcheck(lambda x: token_losses(x, targets, weight, bias, softcap), (x,))


def test_a_second_derivative_is_refused():
    """Catches a Hessian that silently lacks the slope's own derivative."""
    x, targets, weight, _ = case(5)
    (slope,) = torch.autograd.grad(token_losses(x, targets, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate"):
        slope.sum().backward()


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("mode", ["bf16", "autocast", "bf16 under autocast", "mixed under autocast"])
def test_bf16_is_as_exact_as_the_plain_way(mode, softcap):
    """Error against float32, in loss and gradient, stays within 1.25 times what whole bf16 logits have."""
    x, targets, weight, bias = case(600, torch.float32, bias=True)
    truth = value_and_gradient(plain, x, targets, weight, bias, softcap=softcap)
    head = torch.float32 if mode == "autocast" else torch.bfloat16
    state = torch.bfloat16 if mode.startswith("bf16") else torch.float32
    given = x.to(state), targets, weight.to(head), bias.to(head)
    # The inputs' own rounding is not the loss's doing.
    if mode != "autocast":
        truth = value_and_gradient(
            plain, given[0].float(), targets, given[2].float(), given[3].float(), softcap=softcap
        )
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in mode):
        found = value_and_gradient(token_losses, *given, softcap=softcap)
        usual = value_and_gradient(plain, *given, softcap=softcap)
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
    _, found = value_and_gradient(token_losses, x, targets, weight)
    _, exact = value_and_gradient(plain, x.float(), targets, weight.float())
    assert abs(found[0, 0] / exact[0, 0] - 1) < 2**-7


class Largest(TorchDispatchMode):
    """Note the largest tensor, in elements of its storage, and the number of matrix products."""

    def __init__(self):
        super().__init__()
        self.elements, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.linear)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_more_logits_are_held_than_allowed(softcap, monkeypatch):
    """Catches a copy of all logits anywhere in forward or backward."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 10 * VOCAB)
    given = case(95)
    with Largest() as seen:
        value_and_gradient(token_losses, *given, softcap=softcap)
    assert max(95 * WIDTH, VOCAB * WIDTH) <= seen.elements <= 10 * VOCAB + VOCAB * WIDTH
    with Largest() as whole:
        value_and_gradient(plain, *given, softcap=softcap)
    assert whole.elements == 95 * VOCAB, "the measure itself sees whole logits"


def test_without_gradient_half_the_products_are_saved(monkeypatch):
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 10 * VOCAB)
    given = case(40)
    for context, products in ((torch.enable_grad(), 8), (torch.no_grad(), 4), (torch.inference_mode(), 4)):
        with context, Largest() as seen:
            each = token_losses(*given)
        assert seen.products == products
        torch.testing.assert_close(each.detach(), plain(*given).detach())


def two_losses(h, s, targets, head):
    own, shadow = losses.frozen_head_losses((h[None], s[None]), Head(head.weight), None, targets[None], None)
    return own + 0.5 * shadow, shadow


def head_of_case(weight):
    head = nn.Linear(WIDTH, VOCAB, bias=False, dtype=weight.dtype).requires_grad_(False)
    head.weight.copy_(weight)
    return head


def test_tokens_without_a_label_get_no_logits():
    """Catches a prompt's tokens going through the head, which may be most of a batch."""
    x, targets, weight, _ = case(40)
    targets[3:] = -100
    with Largest() as seen:
        two_losses(x, x, targets, head_of_case(weight))[0].backward()
    assert seen.elements == VOCAB * WIDTH > 2 * 3 * VOCAB, "the head itself"


# Compiled


def test_compiled_whole_and_for_many_lengths(monkeypatch):
    """Catches a graph break, and a graph for each length of batch: a new one is due only where the number of chunks changes."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 32 * VOCAB)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(two_losses, fullgraph=True, backend=counter)
    for tokens in (33, 34, 35, 40, 41, 44, 46):  # three chunks for both states together
        x, targets, weight, _ = case(tokens, torch.float32)
        head, results = head_of_case(weight), []
        for run in (two_losses, compiled):
            h, s = x.detach().clone().requires_grad_(), x.detach().flip(0).requires_grad_()
            loss, shadow = run(h, s, targets, head)
            loss.backward()
            results.append((loss, shadow, h.grad, s.grad))
        torch.testing.assert_close(*results)
    assert counter.frame_count <= 3


def test_compiled_forward_hands_no_logits_to_the_backward_pass(monkeypatch):
    """Catches a partition that keeps the logits of every chunk, or moves the second product to the backward pass."""
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
    x, targets, weight, _ = case(45, torch.float32)
    with pytest.warns(UserWarning, match="boxed"):
        torch.compile(two_losses, fullgraph=True, backend=backend)(x, x, targets, head_of_case(weight))[
            0
        ].backward()
    nodes = {name: list(graph.graph.nodes) for name, graph in graphs.items()}
    handed = [node.meta["val"].numel() for node in nodes["backward"] if node.op == "placeholder"]
    assert max(handed) == 2 * 45 * WIDTH
    assert not [node for graph in nodes.values() for node in graph if "mm" in str(node.target)], (
        "the products are inside one operation"
    )
    values = [value for node in nodes["forward"] for value in tree_leaves(node.meta.get("val"))]
    sizes = [value.numel() for value in values if isinstance(value, torch.Tensor)]
    assert max(sizes) == VOCAB * WIDTH, "the head itself"


def test_the_operation_of_a_compiled_graph_is_one_to_torch():
    """Catches a shape told to the compiler that is another one at run time, and a gradient that compiled code would get wrong."""
    x, targets, weight, bias = case(7, torch.float32, bias=True)
    aimed = targets != -100
    given = (x, torch.where(aimed, targets, 0), aimed, weight, bias)
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
    x, targets, weight, _ = case(5, torch.float32)
    run = torch.compile(token_losses, backend="aot_eager", fullgraph=True) if compiled else token_losses

    def twice():
        (gradient,) = torch.autograd.grad(run(x, targets, weight).sum(), x, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError):
        twice()


# In the model


def shadowed(model_type, dtype=torch.float64, **settings):
    model = perturb(
        attach(tiny_model(model_type, dtype=dtype), ShadowConfig(alpha=0.5, dropout=0.0, **settings))
    )
    assert arch.has_plain_frozen_head(model.base)
    return model.train()


def batch():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 97, (3, 11), generator=generator)
    labels = ids.clone()
    labels[0, :5], labels[1, 8:], labels[2] = -100, -100, -100
    return {"input_ids": ids, "labels": labels}


def outcome(model, **inputs):
    """Return both losses and every gradient of one step."""
    model.zero_grad()
    out = model(**inputs)
    out.loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", ["paper", "normed"])
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gptj", "phi3"])
def test_training_a_model_equals_the_plain_way(model_type, variant, monkeypatch):
    """Catches either head's loss on the wrong state, a lost cap (Gemma 2) or bias (GPT-J), a loss that is weighted twice."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 5 * 97)
    model = shadowed(model_type, variant=variant)
    lean, found = outcome(model, **batch())
    whole, expected = outcome(model, **batch(), skip_logits=False)
    assert lean.logits is None
    assert whole.logits.shape == (3, 11, 97)
    torch.testing.assert_close(
        (lean.loss, lean.shadow_loss), (whole.loss.double(), whole.shadow_loss.double()), rtol=1e-6, atol=0
    )
    assert set(found) == set(expected)
    for name, gradient in expected.items():  # the plain way casts logits to float32
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize("count", [7, torch.tensor(7)], ids=["number", "tensor"])
def test_normalised_as_the_trainer_asks(count):
    """Catches a mean where the Trainer counts the whole accumulated batch."""
    model = shadowed("qwen3", torch.float32)
    for extra in ({"num_items_in_batch": count}, {}):
        lean, whole = (model(**batch(), **extra, skip_logits=skip) for skip in (True, False))
        torch.testing.assert_close((lean.loss, lean.shadow_loss), (whole.loss, whole.shadow_loss))


def test_labels_already_shifted():
    model = shadowed("qwen3", torch.float32)
    inputs = batch()
    shifted = F.pad(inputs.pop("labels"), (0, 1), value=-100)[:, 1:].contiguous()
    lean, whole = (model(**inputs, shift_labels=shifted, skip_logits=skip) for skip in (None, False))
    assert lean.logits is None
    torch.testing.assert_close(lean.loss, whole.loss)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_without_a_label(compiled):
    """As the plain way: a mean over nothing is not a number, a sum is 0, and neither sends a gradient."""
    head = head_of_case(case(4, torch.float32)[2])
    for count, expected in ((None, math.nan), (3, 0.0)):
        x = torch.randn(2, 4, WIDTH, requires_grad=True)
        labels = torch.full((2, 4), -100)

        def step(x, labels=labels, count=count):
            return losses.frozen_head_losses((x, x), Head(head.weight), labels, None, count)

        loss = sum((torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step)(x))
        usual = losses.next_token_loss(head(x), labels, None, count)
        loss.backward()
        assert loss.item() == pytest.approx(expected, nan_ok=True)
        assert usual.item() == pytest.approx(expected, nan_ok=True)
        assert x.grad.eq(0).all()


def test_whole_steps_hold_no_logits(monkeypatch):
    """Catches logits computed beside the loss in training: neither whole ones nor those of unlabelled tokens."""
    monkeypatch.setattr(linear_ce, "LOGITS_AT_A_TIME", 4 * 4000)
    config = tiny_model("qwen3").config
    config.vocab_size = 4000
    model = attach(tiny_model("qwen3", config=config)).train()
    table = 4000 * config.hidden_size
    for skip, held in ((None, table), (False, 3 * 11 * 4000)):
        with Largest() as seen:
            outcome(model, **batch(), skip_logits=skip)
        assert seen.elements == max(table, held)
    assert table < 3 * 11 * 4000 <= 2 * table, "whole logits would show"


def test_when_logits_are_given():
    """Catches evaluation, a plain tuple or a caller who asks for shadow logits left without what they read."""
    model, inputs = shadowed("qwen3", torch.float32), batch()
    labels = inputs.pop("labels")
    assert model(**inputs, labels=labels).logits is None
    assert model(**inputs).logits is not None
    asked = model(**inputs, labels=labels, output_shadow_logits=True)
    assert asked.logits is not None
    assert asked.shadow_logits is not None
    loss, logits, *_ = model(**inputs, labels=labels, return_dict=False)
    torch.testing.assert_close(loss, asked.loss)
    assert torch.equal(logits, asked.logits)
    both = model(**inputs, labels=labels, output_shadow_logits=True, skip_logits=True)
    assert both.logits is None
    assert torch.equal(both.shadow_logits, asked.shadow_logits)
    kept = model(**inputs, labels=labels[:, -4:], logits_to_keep=4)
    torch.testing.assert_close(
        kept.loss, model(**inputs, labels=labels[:, -4:], logits_to_keep=4, skip_logits=False).loss
    )
    model.eval()
    assert model(**inputs, labels=labels).logits is not None
    assert model(**inputs, labels=labels, skip_logits=True).logits is None
    with pytest.raises(ConfigError, match="skip_logits=True leaves nothing"):
        model(**inputs, skip_logits=True)


def test_a_head_that_is_more_than_its_weights_is_called():
    """A trained head gets its gradient, hooks and other kinds of layer act: such heads take the plain way."""
    model = shadowed("phi3", torch.float32)
    head = arch.head_of(model.base)
    expected = model(**batch()).loss
    head.requires_grad_(True)
    out, gradients = outcome(model, **batch())
    assert out.logits is None
    assert gradients["base.lm_head.weight"].abs().sum() > 0
    torch.testing.assert_close(out.loss, expected)
    head.requires_grad_(False)
    handle = head.register_forward_hook(lambda *_: 2 * _[2])
    assert not torch.isclose(model(**batch()).loss, expected)
    handle.remove()
    torch.testing.assert_close(model(**batch()).loss, expected)
    model.base.lm_head = type(
        "Quantised", (nn.Linear,), {"forward": lambda self, x: 2 * F.linear(x, self.weight)}
    )(32, 97, False)
    model.base.lm_head.load_state_dict(head.state_dict())
    model.base.lm_head.requires_grad_(False)
    assert not torch.isclose(model(**batch()).loss, expected)


def test_a_whole_training_step_compiles_without_a_break():
    torch._dynamo.reset()
    model, inputs = shadowed("gemma2", torch.float32), batch()
    expected, gradients = outcome(model, **inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss = compiled(**inputs).loss
    loss.backward()
    torch.testing.assert_close(loss, expected.loss)
    torch.testing.assert_close(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, gradients
    )


def test_the_recipe_measures():
    """Runs recipes/linear_ce small: every row is complete, and an unknown way is named."""
    script = Path(__file__).parents[2] / "recipes" / "linear_ce" / "measure.py"
    command = [
        sys.executable,
        str(script),
        "--tokens=40",
        "--width=16",
        "--vocab=300",
        "--rounds=2",
        "--labelled=0.5",
    ]
    rows = subprocess.run(
        [*command, "--ways=plain,swept"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [json.loads(row)["way"] for row in rows] == ["plain", "swept"]
    assert all(len(json.loads(row)["errors"]) == 3 and json.loads(row)["ms"] > 0 for row in rows)
    wrong = subprocess.run([*command, "--ways=plane"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "unknown way 'plane'" in wrong.stderr
