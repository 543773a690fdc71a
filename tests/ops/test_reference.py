"""The reference operations against the equations written out value by value, and their gradients against
finite differences.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from shadowpeft.ops import (
    Crossing,
    InjectionWeights,
    Rule,
    UpdateWeights,
    boundary,
    correct,
    inject,
    read,
    update,
)

# Odd sizes: a transposed or broadcast matrix cannot pass by accident.
B, T, D, R, U = 2, 3, 5, 4, 7


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def unused(h_BTD: torch.Tensor) -> torch.Tensor:
    raise AssertionError("only the variant normed reads through a norm")


@pytest.fixture
def injection() -> InjectionWeights:
    torch.manual_seed(0)
    return InjectionWeights(draw(R, D), draw(D, R))


@pytest.fixture(params=["normed", "paper", "peft"])
def update_weights(request) -> UpdateWeights:
    torch.manual_seed(1)
    if request.param == "normed":
        return UpdateWeights(
            draw(U, D), None, draw(D, U), None, draw(U, D), None, draw(D, U), None, None, "silu", 1.5
        )
    if request.param == "paper":
        return UpdateWeights(
            draw(U, D),
            None,
            draw(D, U),
            None,
            draw(U, D),
            None,
            draw(D, U),
            None,
            (draw(D), draw(D), 1e-5),
            "silu",
        )
    return UpdateWeights(
        draw(U, D), draw(U), draw(D, U), draw(D), draw(U, D), draw(U), draw(D, U), draw(D), None, "gelu"
    )


def test_inject_is_equation_4(injection):
    """Catches a wrong sign of delta, a transposed matrix, alpha in the wrong place."""
    h, s = draw(B, T, D), draw(B, T, D)
    got = inject(h, s, injection, alpha=0.3)
    for b in range(B):
        for t in range(T):
            low = [
                sum((h[b, t, d] - s[b, t, d]) * injection.down_RD[r, d] for d in range(D)) for r in range(R)
            ]
            for d in range(D):
                want = h[b, t, d] + 0.3 * sum(low[r] * injection.up_DR[d, r] for r in range(R))
                assert got[b, t, d].item() == pytest.approx(want.item(), rel=1e-12)


def scalar_mlp(x, w_in, b_in, w_out, b_out, activation):
    hidden = [
        sum(x[d] * w_in[u, d].item() for d in range(D)) + (b_in[u].item() if b_in is not None else 0)
        for u in range(U)
    ]
    if activation == "silu":
        hidden = [value / (1 + math.exp(-value)) for value in hidden]
    else:
        hidden = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in hidden]
    return [
        sum(hidden[u] * w_out[d, u].item() for u in range(U)) + (b_out[d].item() if b_out is not None else 0)
        for d in range(D)
    ]


def test_update_is_equations_5_to_7(update_weights):
    """Catches T and G swapped, 1 - g on the wrong side, a missing norm or bias, the wrong activation, a gate
    shifted the wrong way.
    """
    w = update_weights
    h, s = draw(B, T, D), draw(B, T, D)
    got = update(h, s, w)
    for b in range(B):
        for t in range(T):
            x = [value.item() for value in h[b, t]]
            if w.norm is not None:
                mean = sum(x) / D
                spread = math.sqrt(sum((value - mean) ** 2 for value in x) / D + w.norm[2])
                x = [
                    (value - mean) / spread * w.norm[0][d].item() + w.norm[1][d].item()
                    for d, value in enumerate(x)
                ]
            candidate = scalar_mlp(
                x, w.transform_in_UD, w.transform_in_U, w.transform_out_DU, w.transform_out_D, w.activation
            )
            gate = scalar_mlp(x, w.gate_in_UD, w.gate_in_U, w.gate_out_DU, w.gate_out_D, w.activation)
            for d in range(D):
                g = 1 / (1 + math.exp(w.gate_shift - gate[d]))
                assert got[b, t, d].item() == pytest.approx(
                    (1 - g) * s[b, t, d].item() + g * candidate[d], rel=1e-10
                )


def test_boundary_is_update_then_inject(update_weights, injection):
    """Catches an injection that reads the old shadow state."""
    h, s = draw(B, T, D), draw(B, T, D)
    h_next, s_next = boundary(h, s, Crossing(update_weights, injection, Rule("paper", 0.7), unused))
    assert torch.equal(s_next, update(h, s, update_weights))
    assert torch.equal(h_next, inject(h, s_next, injection, 0.7))
    assert not torch.equal(h_next, inject(h, s, injection, 0.7))


def test_gradients_match_finite_differences(update_weights, injection):
    """Catches a detached or doubled path: every input and weight is checked."""
    tensors = [value for value in (*update_weights[:8], *injection) if value is not None]
    tensors += list(update_weights.norm[:2]) if update_weights.norm else []

    def run(h, s, *_):
        return boundary(h, s, Crossing(update_weights, injection, Rule("paper", 0.7), unused))

    assert torch.autograd.gradcheck(run, (draw(1, 2, D), draw(1, 2, D), *tensors))


@pytest.mark.parametrize("site", ["bottleneck", "delta"])
def test_dropout_is_unbiased_and_off_by_default(injection, site):
    """Catches dropout left on in evaluation, and a missing rescaling."""
    h, s = draw(1, 1, D), draw(1, 1, D)
    clean = inject(h, s, injection, 1.0, site=site)
    assert torch.equal(clean, inject(h, s, injection, 1.0, 0.0, site))
    torch.manual_seed(0)
    noisy = inject(h.expand(20000, 1, D), s.expand(20000, 1, D), injection, 1.0, 0.4, site)
    assert not torch.equal(noisy[0], clean[0])
    spread = noisy.std(0) / math.sqrt(20000)
    assert ((noisy.mean(0) - clean[0]).abs() < 5 * spread).all()


def test_read_is_the_norm_at_unit_scale():
    """Catches a reading that skips the norm, scales before it, or divides by a sum in place of a mean."""
    h, weight, bias = draw(B, T, D), draw(D), draw(D)
    got = read(h, lambda h_BTD: h_BTD * weight + bias)
    for b in range(B):
        for t in range(T):
            seen = [h[b, t, d].item() * weight[d].item() + bias[d].item() for d in range(D)]
            rms = math.sqrt(sum(value * value for value in seen) / D + 1e-6)
            assert got[b, t].tolist() == pytest.approx([value / rms for value in seen], rel=1e-12)
    assert read(torch.zeros(1, 1, D), lambda h_BTD: h_BTD).tolist() == [[[0.0] * D]], (
        "padding may be zero all over"
    )


def test_correct_is_as_written(injection):
    """Catches a wrong sign of delta or of the correction, a missing silu or mean|h|, the rms or the sum in
    its place, alpha left out.
    """
    h, x, s = draw(B, T, D), draw(B, T, D), draw(B, T, D)
    got = correct(h, x, s, injection, alpha=0.3)
    for b in range(B):
        for t in range(T):
            low = [
                sum((x[b, t, d] - s[b, t, d]).item() * injection.down_RD[r, d].item() for d in range(D))
                for r in range(R)
            ]
            low = [value / (1 + math.exp(-value)) for value in low]
            size = sum(abs(value) for value in h[b, t].tolist()) / D
            for d in range(D):
                want = h[b, t, d].item() + 0.3 * size * sum(
                    low[r] * injection.up_DR[d, r].item() for r in range(R)
                )
                assert got[b, t, d].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_the_scale_of_the_stream_does_not_matter(injection, scale):
    """Catches any part of the boundary that sees how large hidden states are; between models they differ a
    thousandfold.
    """
    h, s = draw(B, T, D), draw(B, T, D)

    def cross(h_BTD):
        x_BTD = read(h_BTD, lambda h_BTD: F.rms_norm(h_BTD, (D,), eps=1e-30))
        return correct(h_BTD, x_BTD, s, injection, 0.7)

    torch.testing.assert_close(cross(scale * h), scale * cross(h), rtol=1e-12, atol=0)


def test_gradients_of_the_normed_boundary_match_finite_differences(injection):
    """Catches a detached size, reading or state: every input and weight is checked, those of the norm too."""
    weights = UpdateWeights(
        draw(U, D), None, draw(D, U), None, draw(U, D), None, draw(D, U), None, None, "silu", 1.5
    )
    norm = draw(D), draw(D)

    def run(h, s, *_):
        crossing = Crossing(
            weights, injection, Rule("normed", 0.7), lambda h_BTD: F.layer_norm(h_BTD, (D,), *norm)
        )
        return boundary(h, s, crossing)

    tensors = [value for value in (*weights[:8], *injection, *norm) if value is not None]
    assert torch.autograd.gradcheck(run, (draw(1, 2, D), draw(1, 2, D), *tensors))


def test_dropout_of_correct_is_unbiased_and_off_by_default(injection):
    """Catches dropout left on in evaluation, a missing rescaling, and dropout before silu, whose mean is
    another.
    """
    h, x, s = draw(1, 1, D), draw(1, 1, D), draw(1, 1, D)
    clean = correct(h, x, s, injection, 1.0)
    assert torch.equal(clean, correct(h, x, s, injection, 1.0, 0.0))
    torch.manual_seed(0)
    noisy = correct(*(tensor.expand(20000, 1, D) for tensor in (h, x, s)), injection, 1.0, 0.4)
    assert not torch.equal(noisy[0], clean[0])
    assert ((noisy.mean(0) - clean[0]).abs() < 5 * noisy.std(0) / math.sqrt(20000)).all()


def test_types_of_the_normed_boundary_are_kept():
    """Catches a silent promotion by autocast's float32 norms, and squares or sums taken in a type that cannot
    hold them.
    """
    h, s = torch.randn(1, 2, D, dtype=torch.bfloat16), torch.randn(1, 2, D)
    w, norm = InjectionWeights(torch.randn(R, D), torch.randn(D, R)), torch.nn.LayerNorm(D)
    with torch.autocast("cpu", torch.bfloat16):
        x = read(h, norm)
        assert x.dtype == torch.bfloat16
        assert correct(h, x, s, w, 0.1).dtype == torch.bfloat16
    large = torch.full((1, 1, D), 4e4, dtype=torch.float16)
    assert torch.equal(read(large, lambda h_BTD: h_BTD), torch.ones(1, 1, D, dtype=torch.float16))
    assert read(large.double(), lambda h_BTD: h_BTD).dtype == torch.float64


def test_types_are_kept():
    """Catches a silent promotion: a bf16 stream stays bf16 beside float32 weights."""
    h, s = torch.randn(1, 2, D, dtype=torch.bfloat16), torch.randn(1, 2, D)
    w = InjectionWeights(torch.randn(R, D), torch.randn(D, R))
    with torch.autocast("cpu", torch.bfloat16):
        assert inject(h, s, w, 0.1).dtype == torch.bfloat16
