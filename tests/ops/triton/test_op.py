"""The fused boundary against the reference: on a GPU as compiled, elsewhere in Triton's interpreter."""

import importlib.util
import math
import os
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.boundary_cases import DEVICE, KINDS, Kind, assert_as_exact, draw, errors, in_float64, run
from helpers.families import TINY, attached, language_batch, perturb, tiny_model, token_ids
from helpers.poison import poisoned  # noqa: F401 - a fixture
from helpers.runs import save_base, text_rows, write_rows
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from shadowpeft import ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.cli import main
from shadowpeft.errors import ConfigError
from shadowpeft.losses import linear_ce
from shadowpeft.losses.frozen_head import Head
from shadowpeft.ops import choice, reference

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None
        or (DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1"),
        reason="needs Triton, and a GPU or TRITON_INTERPRET=1",
    ),
    pytest.mark.filterwarnings(
        "ignore:overflow encountered in exp:RuntimeWarning"
    ),  # of the interpreter: a sigmoid of much below zero
]
if importlib.util.find_spec("triton") is not None:
    import triton.language as tl

    from shadowpeft.losses import linear_ce_triton
    from shadowpeft.ops.triton import op as fused
    from shadowpeft.ops.triton import parts
    from shadowpeft.ops.triton.case import Attributes, Weights

# float32 is rounded elsewhere than in the reference; tf32 would be a thousand times worse.
FLOAT32 = {"times": 3.0, "floor": 5e-7}
BFLOAT16 = {"times": 1.5, "floor": 1e-4}


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round to bfloat16 as a GPU does: it cuts, so that errors have a sign and add up."""
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounded(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16).numpy()
            return interpreter.TensorHandle(bits, tl.bfloat16)
        return cast(self, source, target)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounded)


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
@pytest.mark.parametrize(("variant", "norm"), KINDS)
def test_results_and_every_gradient(variant: str, norm: str, halves: str) -> None:
    """Catches a wrong term anywhere, a tile's edge, a split that is counted twice, memory that nobody wrote, tf32."""
    assert_as_exact(fused.boundary, draw(Kind(variant, norm, halves=halves)), **FLOAT32)


@pytest.mark.parametrize(
    ("shape", "D", "U", "R"),
    [((1, 1), 7, 1, 1), ((2, 33), 131, 10, 16), ((2, 1, 3), 64, 17, 33), ((5, 7), 16, 40, 2)],
)
@pytest.mark.parametrize(("variant", "norm"), [("normed", "layer"), ("peft", "none")])
def test_any_size(variant: str, norm: str, shape: tuple[int, ...], D: int, U: int, R: int) -> None:
    """Catches a size that only multiples of a tile fit: one row, one column more than a tile, U beside R, U and R past one tile."""
    # A sum of a few numbers that nearly cancel may lose digits that the reference by chance keeps; a wrong index would lose all.
    assert_as_exact(fused.boundary, draw(Kind(variant, norm, shape, D, U, R)), times=3.0, floor=3e-5)


@pytest.mark.parametrize(("variant", "norm"), KINDS)
def test_bfloat16(variant: str, norm: str) -> None:
    """Catches sums taken in bfloat16, or a value rounded once more than in the reference."""
    assert_as_exact(
        fused.boundary, draw(Kind(variant, norm, (2, 20), 100, 10, 16, stream=torch.bfloat16)), **BFLOAT16
    )


def test_a_gate_of_large_hidden_states_keeps_its_digits() -> None:
    """Catches G's hidden values rounded to one bfloat16 before its second matrix: in `peft` nearly all of these two errors."""
    drawn = draw(Kind("peft", "none", (parts.FEW_ROWS + 44,), 140, 10, 16, stream=torch.bfloat16))
    truth = run(reference.boundary, in_float64(drawn))
    mine, theirs = (errors(run(boundary, drawn), truth) for boundary in (fused.boundary, reference.boundary))
    for name in (
        "d_gate_in_UD",
        "d_gate_out_DU",
    ):  # a fifth; with one rounding, as in the reference, 0.7 to 1.0
        assert mine[name] <= 0.5 * theirs[name], (name, mine[name], theirs[name])


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
def test_more_rows_than_decoding_has(halves: str) -> None:
    """Catches a tile that only a long batch uses."""
    kind = Kind("normed", "rms", (parts.FEW_ROWS + 9,), 140, 10, 16, halves, stream=torch.bfloat16)
    assert_as_exact(fused.boundary, draw(kind), **BFLOAT16)


@pytest.mark.parametrize(("variant", "norm"), [("normed", "rms"), ("paper", "none"), ("peft", "none")])
def test_float32_weights_and_state_beside_a_bfloat16_stream(variant: str, norm: str) -> None:
    """Catches a gradient in the stream's type: under autocast the weights and their gradients stay float32."""
    kind = Kind(
        variant, norm, (2, 20), 100, 10, 16, stream=torch.bfloat16, weights=torch.float32, state=torch.float32
    )
    assert_as_exact(fused.boundary, draw(kind), **BFLOAT16, autocast=True)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    """Catches a variance from sums about zero."""
    for kind in (Kind("paper", "none"), Kind("normed", "layer")):
        drawn = draw(kind)
        drawn.h += 3000
        # Means of a thousand deviations cost the product that the norm is folded into three digits; the variance would lose all.
        assert_as_exact(fused.boundary, drawn, times=1.0, floor=1e-3)


def test_tensors_may_lie_anyhow_in_memory() -> None:
    """Catches a kernel that takes its inputs, or the gradients that come to it, for contiguous."""
    drawn = draw(Kind())
    want = run(fused.boundary, drawn)
    for name in ("h", "s", "dh", "ds"):
        scattered = vars(drawn)[name].transpose(0, 2).contiguous().transpose(0, 2)
        setattr(drawn, name, scattered)
        assert not scattered.is_contiguous()
    got = run(fused.boundary, drawn)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_no_rows_at_all() -> None:
    drawn = draw(Kind("paper", "none", shape=(0, 4)))
    got = run(fused.boundary, drawn)
    assert got["new_h"].shape == got["d_s"].shape == (0, 4, 72)
    assert all(not got[name].any() for name in got)


def test_every_run_is_equal_to_the_last_bit() -> None:
    """Catches a race, and sums in an order of chance."""
    drawn = draw(Kind(shape=(2, 40), D=200, U=10, R=16))
    one, two = run(fused.boundary, drawn), run(fused.boundary, drawn)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
def test_only_h_and_s_are_kept(halves: str) -> None:
    """Catches a wide tensor kept for the backward pass, such as the new state, which the next boundary keeps."""
    drawn = draw(Kind("normed", "rms", shape=(4, 32), D=512, halves=halves))
    h, s = drawn.h.requires_grad_(), drawn.s.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        fused.boundary(h, s, drawn.crossing)
    wide = [tensor for tensor in saved if tensor.numel() >= h.numel()]
    assert {tensor.data_ptr() for tensor in wide} <= {h.data_ptr(), s.data_ptr()}
    own = {id(weight) for group in (drawn.update, drawn.inject) for weight in group or ()}
    small = sum(tensor.numel() for tensor in saved if id(tensor) not in own and tensor.numel() < h.numel())
    assert small < 0.15 * h.numel()


def test_without_gradients_nothing_is_kept() -> None:
    drawn = draw(Kind())
    want = run(fused.boundary, drawn)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            new_h, new_s = fused.boundary(drawn.h, drawn.s, drawn.crossing)
        assert torch.equal(new_h, want["new_h"])
        assert torch.equal(new_s, want["new_s"])
        assert new_h.grad_fn is None


def test_gradients_of_some_inputs_only() -> None:
    """Catches a gradient in another's place where the stream below wants none, and a state that nobody reads on."""
    kind = Kind(shape=(5,), D=40)
    drawn = draw(kind)
    want = run(fused.boundary, drawn)
    s = drawn.s.requires_grad_()
    new_h, new_s = fused.boundary(drawn.h, s, drawn.crossing)
    inputs = {"d_s": s, "d_down_RD": drawn.inject.down_RD, "d_gate_out_DU": drawn.update.gate_out_DU}
    got = torch.autograd.grad([new_h, new_s], list(inputs.values()), [drawn.dh, drawn.ds])
    assert all(torch.equal(grad, want[name]) for name, grad in zip(inputs, got, strict=True))
    for output, grad, zero in ((0, drawn.dh, "ds"), (1, drawn.ds, "dh")):
        only = {**vars(draw(kind)), zero: torch.zeros_like(drawn.ds)}
        exact = run(fused.boundary, type(drawn)(**only))
        h = drawn.h.detach().requires_grad_()
        result = fused.boundary(h, drawn.s, drawn.crossing)[output]
        torch.testing.assert_close(torch.autograd.grad(result, h, grad)[0], exact["d_h"])


# Dropout


def mask(seed: Tensor, rows: int, columns: int, site: int, p: float) -> Tensor:
    """The mask that the kernels make, written out by one of their functions."""
    out = torch.empty(rows, columns, device=DEVICE)
    parts.mask_kernel[(-(-rows // 32), -(-columns // 32))](seed, out, rows, columns, site, p, BM=32, BK=32)
    return out


def test_masks_drop_their_share_at_random() -> None:
    """Catches a mask that repeats over rows, columns, sites or seeds, and one that keeps too much or too little."""
    seeds = [torch.tensor([n], device=DEVICE) for n in (3, 4, 3 + 2**40)]
    masks = [mask(seed, 96, 80, site, 0.3) for seed in seeds for site in (0, 1)]
    for one in masks:
        assert set(one.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
        assert (one > 0).float().mean().item() == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / one.numel()))
    rows = torch.cat([*masks, *(one.T[:80, :80].contiguous() for one in masks)]).gt(0)
    assert len(rows.unique(dim=0)) == len(rows)
    agree = (masks[0].gt(0) == masks[1].gt(0)).float().mean().item()
    assert agree == pytest.approx(0.7**2 + 0.3**2, abs=0.03)


@pytest.mark.parametrize("halves", ["both", "inject", "update"])
@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_dropout_is_the_reference_s_with_the_same_mask(
    variant: str, halves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a mask at another place, another mask on the way back, and one that depends on how the work is tiled."""
    kind = Kind(variant, "rms" if variant == "normed" else "none", (2, 20), 70, 5, 3, halves, dropout=0.4)
    drawn = draw(kind)
    torch.manual_seed(11)
    seed = torch.randint(2**62, (1,), device=DEVICE)

    def masked(x: Tensor, p: float, training: bool) -> Tensor:
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        site = 1 if width == kind.U else 0
        return x * mask(seed, rows, width, site, p).to(x.dtype).view(x.shape) if training else x

    torch.manual_seed(11)
    got = run(fused.boundary, drawn)
    monkeypatch.setattr(reference.F, "dropout", masked)
    truth, plain = run(reference.boundary, in_float64(drawn)), run(reference.boundary, drawn)
    mine, theirs = errors(got, truth), errors(plain, truth)
    assert all(mine[name] <= FLOAT32["times"] * theirs[name] + FLOAT32["floor"] for name in truth), (
        mine,
        theirs,
    )


def test_dropout_follows_torch_s_seed() -> None:
    drawn = draw(Kind("paper", "none", shape=(5,), D=40, dropout=0.4))
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(run(fused.boundary, drawn)["new_h"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# Whole models


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
    """Catches a boundary that the choice did not reach, another block's norm, and gradients that do not add up over blocks."""
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
    want = run(fused.boundary, drawn)
    torch.manual_seed(5)
    got = run(lambda *args: checkpoint(fused.boundary, *args, use_reentrant=False), drawn)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_selective_checkpointing_sees_boundaries() -> None:
    """Catches a way past torch's dispatcher where a policy says which operations' results are kept."""
    drawn, seen = draw(Kind(shape=(5,), D=40)), []

    def policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        seen.append(operation)
        return CheckpointPolicy.PREFER_RECOMPUTE

    watched = partial(create_selective_checkpoint_contexts, policy)
    want = run(fused.boundary, drawn)
    got = run(lambda *args: checkpoint(fused.boundary, *args, use_reentrant=False, context_fn=watched), drawn)
    assert torch.ops.shadowpeft.boundary.default in seen
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_backward_pass_may_be_compiled_alone() -> None:
    """Catches kernels that a compiler of the backward pass would look into."""
    drawn = draw(Kind(shape=(5,), D=40))
    want = run(fused.boundary, drawn)
    new_h, new_s = fused.boundary(drawn.h.requires_grad_(), drawn.s.requires_grad_(), drawn.crossing)
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
            h, s = fused.boundary(h, s, one.crossing)
        return h, s

    torch.manual_seed(5)
    want = run(cross, drawn)
    torch.manual_seed(5)
    got = run(torch.compile(cross, fullgraph=True, backend="aot_eager"), drawn)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-6)


def test_fake_tensors_cross_without_a_kernel() -> None:
    """Catches kernels that are launched on tensors without memory, as those are that a step's memory is estimated with."""
    drawn = draw(Kind())
    with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
        h, s = (fakes.from_tensor(tensor).requires_grad_() for tensor in (drawn.h, drawn.s))
        new_h, new_s = fused.boundary(h, s, drawn.crossing)
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
        w = drawn.update or fused._NO_UPDATE
        norm = fused._norm_of(drawn.crossing)
        weights = Weights.of(w, drawn.inject, norm)
        attributes = Attributes(
            kind.variant, norm.kind, w.activation,
            alpha=0.7, dropout=0.0, gate_shift=w.gate_shift, eps=norm.eps, offset=norm.offset,
        )  # fmt: skip
        args = (drawn.h.requires_grad_(), drawn.s.requires_grad_(), *weights, None, *attributes)
        torch.library.opcheck(
            fused.forward_op,
            args,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


# The norms


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
        assert parts is not None
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


# Choosing


def test_a_norm_of_another_class_is_refused_by_name() -> None:
    """Catches a norm taken for the one it derives from."""
    drawn = draw(Kind())
    drawn.norm = Doubled(72, device=DEVICE)
    with pytest.raises(
        ConfigError,
        match=r"impl='triton' does not know how to read through Doubled; set impl='auto' or 'reference'",
    ):
        run(fused.boundary, drawn)
    got, want = run(fused.boundary_or_reference, drawn), run(reference.boundary, drawn)
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
        fused.boundary(drawn.h, drawn.s, drawn.crossing)


def test_a_model_that_cannot_be_served_is_refused_before_its_first_forward() -> None:
    """Catches a base that stays frozen after a refusal, and a choice that is taken although it was refused."""
    base = tiny_model("qwen3")
    with pytest.raises(ConfigError, match="up to 128, got 200"):
        attach(base, ShadowConfig(r=200), impl="triton")
    assert all(p.requires_grad for p in base.parameters())
    with pytest.raises(ConfigError, match="float64"):
        attach(base.double(), ShadowConfig(), impl="triton")
    model = attach(base, ShadowConfig(r=200))
    assert model.impl == "auto"
    with pytest.raises(ConfigError):
        model.set_impl("triton")
    assert model.impl == "auto"
    served = attach(model.unload().float(), ShadowConfig(), impl="triton")
    with pytest.raises(ConfigError, match="up to 128, got 300"):
        served.add_adapter("wide", ShadowConfig(update_width=300))
    assert list(served.adapters) == ["default"]


def test_the_command_line_hands_the_choice_on(tmp_path, capsys) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", text_rows(4))
    words = [
        "train",
        "--model",
        save_base(tmp_path / "base"),
        "--data",
        rows,
        "--output",
        tmp_path / "run",
        "--max-steps",
        1,
    ]
    assert main([str(word) for word in [*words, "--impl", "triton", "--shadow.r", 200]]) == 2
    assert "impl='triton' takes r and update_width up to 128, got 200" in capsys.readouterr().err


def test_a_machine_without_triton_or_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a named implementation that gives way in silence, and `auto` that does not give way."""
    base, ids = tiny_model("qwen3"), token_ids(1, 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(parts.INTERPRETED, "value", False)
    with pytest.raises(
        ConfigError,
        match="impl='triton' needs a GPU that torch can use, found none; set impl='auto' or 'reference'",
    ):
        attach(base, impl="triton")
    drawn = draw(Kind(), device="cpu")
    with pytest.raises(ConfigError, match="needs tensors on a GPU, got them on 'cpu'"):
        fused.boundary(drawn.h, drawn.s, drawn.crossing)
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="impl='triton' needs the package triton, which is not installed"):
        attach(base, impl="triton")
    assert attach(base).eval()(ids).logits.isfinite().all()


def test_the_choice_is_kept_with_the_model_and_not_with_the_adapter(tmp_path) -> None:
    model = attach(tiny_model("qwen3"), impl="reference")
    model.save_pretrained(tmp_path)
    base = model.unload()
    assert ShadowedModel.from_pretrained(base, tmp_path).impl == "auto"
    assert ShadowedModel.from_pretrained(base, tmp_path, impl="triton").impl == "triton"


def test_the_interpreter_is_never_chosen_by_itself() -> None:
    if DEVICE == "cpu":
        assert choice.boundary_of("auto") is reference.boundary
    else:
        assert choice.boundary_of("auto") is fused.boundary_or_reference


# The loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "classes"), [(0, 5), (1, 1), (3, 7), (5, 4096), (2, 4097), (3, 9001)])
def test_loss_and_derivative_are_those_of_log_softmax(rows: int, classes: int, dtype: torch.dtype) -> None:
    """Catches columns beyond a tile that are left out or counted twice, and a target whose 1 is not taken off."""
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
