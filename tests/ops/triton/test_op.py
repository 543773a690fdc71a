"""The fused boundary as an operation: what it keeps, what it refuses, and how torch's tools see it."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.boundary_cases import DEVICE, Kind, draw, run
from helpers.families import TINY, attached, language_batch, perturb, tiny_model
from helpers.interpreter import ignore_overflow, rounding  # noqa: F401 - a fixture
from helpers.kernel_arguments import arguments_of
from helpers.poison import poisoned  # noqa: F401 - a fixture
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shadowpeft import ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.errors import ConfigError
from shadowpeft.ops import reference

pytest.importorskip("triton")

from shadowpeft.ops.triton import op

pytestmark = ignore_overflow


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
def test_only_h_and_s_are_kept(halves: str) -> None:
    """Catches a wide tensor kept for the backward pass, as the new state, which the next boundary keeps."""
    drawn = draw(Kind("normed", "rms", shape=(4, 32), D=512, halves=halves))
    h, s = drawn.h.requires_grad_(), drawn.s.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        op.boundary(h, s, drawn.crossing)
    wide = [tensor for tensor in saved if tensor.numel() >= h.numel()]
    assert {tensor.data_ptr() for tensor in wide} <= {h.data_ptr(), s.data_ptr()}
    own = {id(weight) for group in (drawn.update, drawn.inject) for weight in group or ()}
    small = sum(tensor.numel() for tensor in saved if id(tensor) not in own and tensor.numel() < h.numel())
    assert small < 0.15 * h.numel()


def test_without_gradients_nothing_is_kept() -> None:
    drawn = draw(Kind(shape=(op.ROWS_ALONE + 1,)))
    want = run(op.boundary, drawn)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            new_h, new_s = op.boundary(drawn.h, drawn.s, drawn.crossing)
        assert torch.equal(new_h, want["new_h"])
        assert torch.equal(new_s, want["new_s"])
        assert new_h.grad_fn is None


def test_gradients_of_some_inputs_only() -> None:
    """Catches a gradient in another's place where the stream below wants none, and a state that nobody reads
    on.
    """
    kind = Kind(shape=(5,), D=40)
    drawn = draw(kind)
    want = run(op.boundary, drawn)
    s = drawn.s.requires_grad_()
    new_h, new_s = op.boundary(drawn.h, s, drawn.crossing)
    inputs = {"d_s": s, "d_down_RD": drawn.inject.down_RD, "d_gate_out_DU": drawn.update.gate_out_DU}
    got = torch.autograd.grad([new_h, new_s], list(inputs.values()), [drawn.dh, drawn.ds])
    assert all(torch.equal(grad, want[name]) for name, grad in zip(inputs, got, strict=True))
    for output, grad, zero in ((0, drawn.dh, "ds"), (1, drawn.ds, "dh")):
        exact = run(op.boundary, replace(draw(kind), **{zero: torch.zeros_like(drawn.ds)}))
        h = drawn.h.detach().requires_grad_()
        result = op.boundary(h, drawn.s, drawn.crossing)[output]
        torch.testing.assert_close(torch.autograd.grad(result, h, grad)[0], exact["d_h"])


def test_dropout_follows_torch_s_seed() -> None:
    drawn = draw(Kind("paper", "none", shape=(5,), D=40, dropout=0.4))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(run(op.boundary, drawn)["new_h"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def build(model_type: str, impl: str, **settings: Any) -> ShadowedModel:
    model = perturb(
        attached(
            tiny_model(model_type), ShadowConfig(**{"r": 4, "update_width": 5, "alpha": 0.5, **settings})
        )
    )
    model.set_impl(impl)
    return model.to(DEVICE)


def step(model: nn.Module, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    loss = model(**{name: value.to(DEVICE) for name, value in language_batch().items()}, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gemma3_text", {"variant": "normed", "inject_from": 2}),
        ("gpt2", {"variant": "normed", "inject_from": 0}),
        ("qwen3", {"variant": "paper", "dropout": 0.0}),
        ("olmo2", {"variant": "peft", "dropout": 0.0}),
    ],
)
def test_a_model_learns_the_same(model_type: str, settings: dict[str, Any]) -> None:
    """Catches a boundary that the choice did not reach, another block's norm, and gradients that do not add
    up over blocks.
    """
    loss, grads = step(build(model_type, "triton", **settings))
    want, wanted = step(build(model_type, "reference", **settings))
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=0)
    assert grads.keys() == wanted.keys()
    for name in grads:
        assert (grads[name] - wanted[name]).norm() <= 2e-4 * wanted[name].norm(), name


def test_checkpointing_draws_the_same_masks_again() -> None:
    """Catches a seed drawn where checkpointing does not repeat it."""
    drawn = draw(Kind("paper", "none", shape=(5,), D=40, dropout=0.4))
    torch.manual_seed(5)
    want = run(op.boundary, drawn)
    torch.manual_seed(5)
    got = run(lambda *args: checkpoint(op.boundary, *args, use_reentrant=False), drawn)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_selective_checkpointing_sees_boundaries() -> None:
    """Catches a way past torch's dispatcher where a policy says which operations' results are kept."""
    drawn, seen = draw(Kind(shape=(5,), D=40)), []

    def policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        seen.append(operation)
        return CheckpointPolicy.PREFER_RECOMPUTE

    watched = partial(create_selective_checkpoint_contexts, policy)
    want = run(op.boundary, drawn)
    got = run(lambda *args: checkpoint(op.boundary, *args, use_reentrant=False, context_fn=watched), drawn)
    assert torch.ops.shadowpeft.boundary.default in seen
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_backward_pass_may_be_compiled_alone() -> None:
    """Catches kernels that a compiler of the backward pass would look into."""
    drawn = draw(Kind(shape=(5,), D=40))
    want = run(op.boundary, drawn)
    new_h, new_s = op.boundary(drawn.h.requires_grad_(), drawn.s.requires_grad_(), drawn.crossing)
    with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
        torch.autograd.backward([new_h, new_s], [drawn.dh, drawn.ds])
    for name, tensor in (("d_h", drawn.h), ("d_s", drawn.s)):
        torch.testing.assert_close(tensor.grad, want[name], rtol=1e-5, atol=1e-6)


def test_boundaries_compile_whole() -> None:
    """Catches a graph break, and an operation whose fake differs from it."""
    drawn = draw(Kind("paper", "none", shape=(1, 5), D=40, dropout=0.4))
    first, last = replace(drawn, update=None), replace(drawn, inject=None)

    def cross(h: Tensor, s: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
        for one in (first, drawn, last):
            h, s = op.boundary(h, s, one.crossing)
        return h, s

    torch.manual_seed(5)
    want = run(cross, drawn)
    torch.manual_seed(5)
    got = run(torch.compile(cross, fullgraph=True, backend="aot_eager"), drawn)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_fake_tensors_cross_without_a_kernel() -> None:
    """Catches kernels that are launched on tensors without memory, as those are that a step's memory is
    estimated with.
    """
    drawn = draw(Kind())
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        h, s = (fakes.from_tensor(tensor).requires_grad_() for tensor in (drawn.h, drawn.s))
        new_h, new_s = op.boundary(h, s, drawn.crossing)
        grads = torch.autograd.grad([new_h.sum(), new_s.sum()], [h, s])
    for tensor, like in ((new_h, drawn.h), (new_s, drawn.s), (grads[0], drawn.h), (grads[1], drawn.s)):
        assert isinstance(tensor, FakeTensor)
        assert (tensor.shape, tensor.dtype) == (like.shape, like.dtype)


def test_operations_keep_torch_s_contract() -> None:
    """Catches a schema that hides a mutation, and a fake that differs in shape or type."""
    for kind in (
        Kind("paper", "none"),
        Kind("normed", "layer", halves="inject", stream=torch.bfloat16),
        Kind(
            "peft", "none", halves="update", stream=torch.bfloat16, weights=torch.float32, state=torch.float32
        ),
    ):
        drawn = draw(kind)
        drawn.h.requires_grad_()
        drawn.s.requires_grad_()
        h, s, weights, seed, attributes = arguments_of(drawn)
        args = (h, s, *weights, seed, *attributes)
        torch.library.opcheck(
            op.forward_op,
            args,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


@pytest.mark.parametrize("model_type", sorted(TINY))
@torch.no_grad()
def test_every_family_s_norm_is_taken_apart_rightly(model_type: str) -> None:
    """Catches a wrong epsilon, a weight that is added to one or not, a LayerNorm taken for an RMSNorm."""
    base = tiny_model(model_type)
    h = (
        torch.randn(5, base.config.hidden_size, generator=torch.Generator().manual_seed(0)) / 100
    )  # so that epsilon counts
    for block in arch.blocks_of(base):
        norm = arch.input_norm_of(block, arch.family_of(base))
        parts = arch.norm_parts(norm)
        assert (parts is None) == (model_type in ("cohere", "cohere2", "nanochat", "nemotron", "olmo"))
        if parts is None:
            continue
        if parts.kind == "rms":
            got = h * (h.square().mean(-1, keepdim=True) + parts.eps).rsqrt() * (parts.weight + parts.offset)
        else:
            got = (
                h
                if parts.kind == "none"
                else nn.functional.layer_norm(h, h.shape[-1:], parts.weight, parts.bias, parts.eps)
            )
        torch.testing.assert_close(got, norm(h), rtol=1e-5, atol=1e-6)


class Doubled(nn.LayerNorm):
    def forward(self, h: Tensor) -> Tensor:
        return 2 * super().forward(h)


def test_a_norm_of_another_class_is_refused_by_name() -> None:
    """Catches a norm taken for the one it derives from."""
    drawn = draw(Kind())
    drawn.norm = Doubled(72, device=DEVICE)
    with pytest.raises(
        ConfigError,
        match=r"impl='triton' does not know how to read through Doubled; set impl='auto' or 'reference'",
    ):
        run(op.boundary, drawn)
    got, want = run(op.boundary_or_reference, drawn), run(reference.boundary, drawn)
    assert all(torch.equal(got[name], want[name]) for name in want)
    base = tiny_model("gpt2")
    base.transformer.h[1].ln_1 = Doubled(32)
    with pytest.raises(ConfigError, match="Doubled"):
        attach(base, ShadowConfig(variant="normed"), impl="triton")
    attach(base, ShadowConfig(variant="paper"), impl="triton")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stream": torch.float64}, "takes bfloat16 and float32, got torch.float64"),
        ({"weights": torch.float16}, "takes bfloat16 and float32, got torch.float16"),
        ({"R": 129}, "takes r and update_width up to 128, got 129"),
        ({"U": 200}, "takes r and update_width up to 128, got 200"),
    ],
)
def test_what_the_kernels_cannot_serve_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    drawn = draw(Kind(**changes))
    with pytest.raises(ConfigError, match=message):
        op.boundary(drawn.h, drawn.s, drawn.crossing)
