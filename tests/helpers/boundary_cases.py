"""Random boundaries of every kind, run by any implementation, and their exact results in float64."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from shadowpeft import arch
from shadowpeft.ops import Crossing, InjectionWeights, Rule, UpdateWeights, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Bounds of `assert_as_exact`. float32 is rounded elsewhere than in the reference; tf32 would be a thousand
# times worse.
FLOAT32 = {"times": 3.0, "floor": 5e-7}
BFLOAT16 = {"times": 1.5, "floor": 1e-4}
# The variants, and the norm that `normed` reads through.
KINDS = [
    ("normed", "rms"),
    ("normed", "gemma"),
    ("normed", "layer"),
    ("normed", "none"),
    ("paper", "none"),
    ("peft", "none"),
]


@dataclass(frozen=True)
class Kind:
    """A boundary: its equations, sizes, types, and the halves that it has (`both`, `inject`, `update`)."""

    variant: str = "normed"
    norm: str = "rms"
    shape: tuple[int, ...] = (3, 11)
    D: int = 72
    U: int = 5
    R: int = 3
    halves: str = "both"
    dropout: float = 0.0
    stream: torch.dtype = torch.float32
    weights: torch.dtype | None = None
    state: torch.dtype | None = None


@dataclass
class Drawn:
    """The tensors of one random boundary, and the gradients that come to its results."""

    h: Tensor
    s: Tensor
    update: UpdateWeights | None
    inject: InjectionWeights | None
    rule: Rule
    norm: Any
    dh: Tensor
    ds: Tensor

    @property
    def crossing(self) -> Crossing:
        """The boundary itself, without the tensors that cross it."""
        return Crossing(self.update, self.inject, self.rule, self.norm)


def draw(kind: Kind, seed: int = 0, device: str = DEVICE) -> Drawn:
    """Draw a boundary: no weight is small, the stream has a mean, and rows differ in size."""
    generator = torch.Generator(device).manual_seed(seed)
    weights, state = kind.weights or kind.stream, kind.state or kind.stream

    def normal(*shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = weights) -> Tensor:
        return (shift + scale * torch.randn(*shape, generator=generator, device=device)).to(dtype)

    def matrix(*shape: int) -> Tensor:
        return normal(*shape, scale=shape[-1] ** -0.5).requires_grad_()

    D, U, R = kind.D, kind.U, kind.R
    update, inject = None, None
    if kind.halves != "inject":
        biases = [matrix(n) if kind.variant == "peft" else None for n in (U, D, U, D)]
        norm = (normal(D, scale=0.3, shift=1.0).requires_grad_(), normal(D, scale=0.3).requires_grad_(), 1e-5)
        last: dict[str, Any] = {
            "normed": {"norm": None, "activation": "silu", "gate_shift": 3.0},
            "paper": {"norm": norm, "activation": "silu"},
            "peft": {"norm": None, "activation": "gelu"},
        }[kind.variant]
        update = UpdateWeights(
            matrix(U, D), biases[0], matrix(D, U), biases[1],
            matrix(U, D), biases[2], matrix(D, U), biases[3], **last,
        )  # fmt: skip
    if kind.halves != "update":
        inject = InjectionWeights(matrix(R, D), matrix(D, R))
    sizes = normal(*kind.shape, 1, dtype=torch.float32).exp()
    return Drawn(
        h=(sizes * normal(*kind.shape, D, scale=3.0, shift=1.0, dtype=torch.float32)).to(kind.stream),
        s=normal(*kind.shape, D, dtype=state),
        update=update,
        inject=inject,
        rule=Rule(kind.variant, 0.7, kind.dropout),  # type: ignore[arg-type]
        norm=norm_of(kind, generator, device),
        dh=normal(*kind.shape, D, dtype=kind.stream),
        ds=normal(*kind.shape, D, dtype=state),
    )


def norm_of(kind: Kind, generator: torch.Generator, device: str) -> Any:
    """Return a block's norm of the wanted sort, its weights far from their start."""
    if kind.norm == "none":
        return arch.input_norm_of(nn.Module(), arch.FAMILIES["olmo2"])
    makers = {"rms": LlamaRMSNorm, "gemma": Gemma3RMSNorm, "layer": nn.LayerNorm}
    module = makers[kind.norm](kind.D, eps=1e-5).to(device)
    for weight in module.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=generator, device=device)
    return module.to(kind.stream).requires_grad_(False)


def exact_norm(norm: Any) -> Any:
    """Return the same norm in float64, written out: those of transformers compute in float32 in any case."""
    parts = arch.norm_parts(norm)
    assert parts is not None
    if parts.kind == "none":
        return norm
    weight = parts.weight.double() + parts.offset
    if parts.kind == "layer":
        return lambda h: nn.functional.layer_norm(h, h.shape[-1:], weight, parts.bias.double(), parts.eps)
    return lambda h: h * (h.square().mean(-1, keepdim=True) + parts.eps).rsqrt() * weight


def in_float64(drawn: Drawn) -> Drawn:
    """Return the same boundary with every tensor in float64."""

    def exact(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().double().requires_grad_(value.requires_grad)
        return tuple(map(exact, value)) if isinstance(value, tuple) else value

    return replace(
        drawn,
        h=exact(drawn.h),
        s=exact(drawn.s),
        update=drawn.update and UpdateWeights(*map(exact, drawn.update)),
        inject=drawn.inject and InjectionWeights(*map(exact, drawn.inject)),
        norm=exact_norm(drawn.norm),
        dh=exact(drawn.dh),
        ds=exact(drawn.ds),
    )


def trained(drawn: Drawn) -> dict[str, Tensor]:
    """Return the trained weights by name."""
    found: dict[str, Any] = {}
    if drawn.inject is not None:
        found |= drawn.inject._asdict()
    if drawn.update is not None:
        found |= drawn.update._asdict()
        if drawn.update.norm is not None:
            found["norm_weight"], found["norm_bias"], _ = drawn.update.norm
    return {name: weight for name, weight in found.items() if isinstance(weight, Tensor)}


def run(boundary: Any, drawn: Drawn) -> dict[str, Tensor]:
    """Cross the boundary and go back; return both results and every gradient by name."""
    h, s = drawn.h.detach().requires_grad_(), drawn.s.detach().requires_grad_()
    new_h, new_s = boundary(h, s, drawn.crossing)
    inputs = {"h": h, "s": s, **trained(drawn)}
    grads = torch.autograd.grad([new_h, new_s], list(inputs.values()), [drawn.dh, drawn.ds])
    return {
        "new_h": new_h.detach(),
        "new_s": new_s.detach(),
        **{f"d_{name}": grad for name, grad in zip(inputs, grads, strict=True)},
    }


def errors(got: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Return ||a - truth|| / ||truth|| of each tensor; infinite where it is not finite."""
    found = {}
    for name, exact in truth.items():
        finite = got[name].isfinite().all()
        found[name] = ((got[name].double() - exact).norm() / exact.norm()).item() if finite else math.inf
    return found


def assert_as_exact(boundary: Any, drawn: Drawn, times: float, floor: float, autocast: bool = False) -> None:
    """Check that no error is more than `times` the reference's in the same type plus `floor`.

    Errors are those of the results and every gradient, against the reference in float64.
    """
    _assert_no_worse([both_errors(boundary, drawn, autocast)], times, floor)


def assert_as_exact_over_draws(boundary: Any, kind: Kind, times: float, floor: float, draws: int = 6) -> None:
    """Check the same of the root mean square over several draws.

    For errors that are a few large roundings each: which of the two is larger in one draw is chance.
    """
    _assert_no_worse([both_errors(boundary, draw(kind, seed)) for seed in range(draws)], times, floor)


def both_errors(boundary: Any, drawn: Drawn, autocast: bool = False) -> dict[str, tuple[float, float]]:
    """Return the errors of a boundary and those of the reference in the same type, by tensor."""
    truth = run(reference.boundary, in_float64(drawn))
    with torch.autocast(drawn.h.device.type, torch.bfloat16, enabled=autocast):
        got, plain = run(boundary, drawn), run(reference.boundary, drawn)
    for name in truth:
        assert (got[name].dtype, got[name].shape) == (plain[name].dtype, plain[name].shape), name
    ours, theirs = errors(got, truth), errors(plain, truth)
    return {name: (ours[name], theirs[name]) for name in truth}


def _assert_no_worse(pairs: list[dict[str, tuple[float, float]]], times: float, floor: float) -> None:
    """Check the root mean square over draws, of one draw its error itself."""
    worse = {}
    for name in pairs[0]:
        ours, theirs = (
            math.hypot(*column) / len(pairs) ** 0.5 for column in zip(*(p[name] for p in pairs), strict=True)
        )
        if not ours <= times * theirs + floor:
            worse[name] = (ours, theirs)
    assert not worse, f"(error, the reference's): {worse}"
