"""The fused boundary: `reference.boundary` as nine Triton kernels that keep nothing wide but h and s for the backward pass.

Two custom operations, so that `torch.compile(fullgraph=True)` keeps them whole; where nobody looks at operations the same two functions
behind an autograd function, as a custom operation is a detour for the host. Kernels: `triton_forward`, `triton_backward`; what they move
and how long that takes: docs/develop/kernels.md.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from shadowpeft import arch
from shadowpeft.errors import ConfigError
from shadowpeft.ops import reference
from shadowpeft.ops.reference import InjectionWeights, Rule, UpdateWeights
from shadowpeft.ops.triton.case import Numbers, Weights, case_of, kept_widths
from shadowpeft.ops.triton.launch import run_backward, run_forward
from shadowpeft.ops.triton.parts import INTERPRETED

WIDEST = 128
DTYPES = (torch.bfloat16, torch.float32)


def boundary(
    h_BTD: Tensor,
    s_BTD: Tensor,
    update_w: UpdateWeights | None,
    inject_w: InjectionWeights | None,
    rule: Rule,
    norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Compute `reference.boundary` with the fused kernels; arguments and results as there.

    Raises:
        ConfigError: they cannot serve; the message says why and which setting to change.
    """
    reason = refusal(h_BTD, s_BTD, update_w, inject_w, rule, norm)
    if reason is not None:
        raise ConfigError(f"impl='triton' {reason}; set impl='auto' or 'reference'")
    return _fused(h_BTD, s_BTD, update_w, inject_w, rule, norm)


def boundary_or_reference(
    h_BTD: Tensor,
    s_BTD: Tensor,
    update_w: UpdateWeights | None,
    inject_w: InjectionWeights | None,
    rule: Rule,
    norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Compute `reference.boundary` with the fused kernels where they can serve, else as it is written."""
    if refusal(h_BTD, s_BTD, update_w, inject_w, rule, norm) is None:
        return _fused(h_BTD, s_BTD, update_w, inject_w, rule, norm)
    return reference.boundary(h_BTD, s_BTD, update_w, inject_w, rule, norm)


def _fused(
    h_BTD: Tensor,
    s_BTD: Tensor,
    update_w: UpdateWeights | None,
    inject_w: InjectionWeights | None,
    rule: Rule,
    norm: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    if update_w is None and inject_w is None:
        return h_BTD, s_BTD
    w = update_w or _NO_UPDATE
    parts = arch.NormParts("none")
    if rule.variant == "normed":
        parts = arch.norm_parts(norm) or parts
    elif w.norm is not None:
        parts = arch.NormParts("layer", w.norm[0], w.norm[1], w.norm[2])
    # Drawn by torch, so that its seeds repeat it and checkpointing restores it; kept on the device, so that nothing waits.
    drops = rule.dropout > 0 and (inject_w is not None or rule.variant == "paper")
    seed = torch.randint(2**62, (1,), device=h_BTD.device) if drops else None
    numbers = (
        float(rule.alpha),
        float(rule.dropout) if drops else 0.0,
        float(w.gate_shift),
        float(parts.eps),
        float(parts.offset),
    )
    cross = forward_op if _is_watched(h_BTD) else _Boundary.apply
    out_BTD, next_BTD, *_ = cross(
        h_BTD,
        s_BTD,
        *w[:8],
        *(inject_w or (None, None)),
        parts.weight,
        parts.bias,
        seed,
        rule.variant,
        parts.kind,
        w.activation,
        *numbers,
    )
    return h_BTD if inject_w is None else out_BTD, s_BTD if update_w is None else next_BTD


def refusal(
    h_BTD: Tensor,
    s_BTD: Tensor,
    update_w: UpdateWeights | None,
    inject_w: InjectionWeights | None,
    rule: Rule,
    norm: Callable[[Tensor], Tensor],
) -> str | None:
    """Say why the kernels cannot serve a boundary, `None` if they can."""
    if h_BTD.device.type != "cuda" and not INTERPRETED.value:
        return f"needs tensors on a GPU, got them on {h_BTD.device.type!r}"
    weights = [] if update_w is None else [update_w.transform_in_UD]
    weights += [] if inject_w is None else [inject_w.down_RD]
    for tensor in (h_BTD, s_BTD, *weights):
        if tensor.dtype not in DTYPES:
            return f"takes bfloat16 and float32, got {tensor.dtype}"
        if tensor.device != h_BTD.device:
            return f"needs hidden states and weights on one device, got {h_BTD.device} and {tensor.device}"
    return _unserved([weight.shape[0] for weight in weights], [norm] if rule.variant == "normed" else [])


def require(dtype: torch.dtype, widths: Iterable[int], norms: Iterable[Callable[[Tensor], Tensor]]) -> None:
    """Refuse a model that the kernels cannot serve: the type of its stream, r and update_width, the norms that are read through.

    Raises:
        ConfigError: says what is expected and which setting to change.
    """
    reason = _unserved(widths, norms) if dtype in DTYPES else f"takes bfloat16 and float32, got {dtype}"
    if reason is not None:
        raise ConfigError(f"impl='triton' {reason}; set impl='auto' or 'reference'")


def _unserved(widths: Iterable[int], norms: Iterable[Callable[[Tensor], Tensor]]) -> str | None:
    for width in widths:
        if width > WIDEST:
            return f"takes r and update_width up to {WIDEST}, got {width}"
    for norm in norms:
        if arch.norm_parts(norm) is None:
            return f"does not know how to read through {type(norm).__name__}"
    return None


_NO_UPDATE = UpdateWeights(*(None,) * 8, None, "silu")  # type: ignore[arg-type]


def _is_watched(tensor: Tensor) -> bool:
    """Tell whether somebody looks at operations: a compiler, a dispatch mode (selective checkpointing), a kind of tensor of its own."""
    return torch.compiler.is_compiling() or type(tensor) is not Tensor or is_in_torch_dispatch_mode()


def _forward(inputs: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the forward kernels on the arguments of `forward_op`."""
    h, s, *tensors, seed, variant, norm, activation, alpha, dropout, gate_shift, eps, offset = inputs
    weights = Weights(*tensors)
    case = case_of(h, weights, variant, norm, activation, dropout, offset)
    return run_forward(case, h, s, weights, seed, Numbers(alpha, dropout, gate_shift, eps))


def _backward(inputs: tuple[Any, ...]) -> list[Tensor]:
    """Run the backward kernels on the arguments of `backward_op`."""
    (
        dout,
        dnext,
        h,
        s,
        kept,
        shared,
        *tensors,
        seed,
        variant,
        norm,
        activation,
        alpha,
        dropout,
        gate_shift,
        eps,
        offset,
        wanted,
    ) = inputs
    weights = Weights(*tensors)
    case = case_of(h, weights, variant, norm, activation, dropout, offset)
    return run_backward(
        case, dout, dnext, h, s, kept, shared, weights, seed, Numbers(alpha, dropout, gate_shift, eps), wanted
    )


@torch.library.custom_op("shadowpeft::boundary", mutates_args=())
def forward_op(
    h: Tensor, s: Tensor, tin: Tensor | None, tin_b: Tensor | None, tout: Tensor | None, tout_b: Tensor | None,
    gin: Tensor | None, gin_b: Tensor | None, gout: Tensor | None, gout_b: Tensor | None, down: Tensor | None, up: Tensor | None,
    norm_w: Tensor | None, norm_b: Tensor | None, seed: Tensor | None,
    variant: str, norm: str, activation: str, alpha: float, dropout: float, gate_shift: float, eps: float, offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return h' (empty without an injection), s' (empty without an update) and numbers for the backward pass, of each row and of all."""
    return _forward((h, s, tin, tin_b, tout, tout_b, gin, gin_b, gout, gout_b, down, up, norm_w, norm_b, seed, variant, norm, activation,
                     alpha, dropout, gate_shift, eps, offset))  # fmt: skip


@forward_op.register_fake
def _(
    h,
    s,
    tin,
    tin_b,
    tout,
    tout_b,
    gin,
    gin_b,
    gout,
    gout_b,
    down,
    up,
    norm_w,
    norm_b,
    seed,
    variant,
    norm,
    activation,
    *numbers,
):  # type: ignore[no-untyped-def]
    rows, width, shared = h.numel() // h.shape[-1], *kept_widths(tin, down)
    out = h.new_empty(0) if down is None else torch.empty_like(h, memory_format=torch.contiguous_format)
    moved = s.new_empty(0) if tin is None else torch.empty_like(s, memory_format=torch.contiguous_format)
    return (
        out,
        moved,
        h.new_empty(rows, width, dtype=torch.float32),
        h.new_empty(shared if norm == "layer" else 0, dtype=torch.float32),
    )


@torch.library.custom_op("shadowpeft::boundary_backward", mutates_args=())
def backward_op(
    dout: Tensor | None, dnext: Tensor | None, h: Tensor, s: Tensor, kept: Tensor, shared: Tensor,
    tin: Tensor | None, tin_b: Tensor | None, tout: Tensor | None, tout_b: Tensor | None,
    gin: Tensor | None, gin_b: Tensor | None, gout: Tensor | None, gout_b: Tensor | None, down: Tensor | None, up: Tensor | None,
    norm_w: Tensor | None, norm_b: Tensor | None, seed: Tensor | None,
    variant: str, norm: str, activation: str, alpha: float, dropout: float, gate_shift: float, eps: float, offset: float, wanted: bool,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of h (empty unless `wanted`), of s and of the trained weights that there are, in order."""
    return _backward((dout, dnext, h, s, kept, shared, tin, tin_b, tout, tout_b, gin, gin_b, gout, gout_b, down, up, norm_w, norm_b, seed,
                      variant, norm, activation, alpha, dropout, gate_shift, eps, offset, wanted))  # fmt: skip


@backward_op.register_fake
def _(dout, dnext, h, s, kept, shared, *rest):  # type: ignore[no-untyped-def]
    trained, wanted = Weights(*rest[:12]).trained(rest[13]), rest[-1]
    found = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (h, s, *trained)]
    return found if wanted else [h.new_empty(0), *found[1:]]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # the last s' is read by nobody, and what is kept has no gradient
    ctx.save_for_backward(*inputs[:15], *output[2:])
    ctx.settings = inputs[15:]


def _gradients(
    ctx: Any, dout: Tensor | None, dnext: Tensor | None, run: Callable[[tuple[Any, ...]], list[Tensor]]
) -> tuple[Any, ...]:
    """Give each argument of `forward_op` its gradient, `None` where it has none."""
    h, s, *weights, seed, kept, shared = ctx.saved_tensors
    if dout is None and weights[8] is not None:
        dout = torch.zeros_like(h)
    wanted = ctx.needs_input_grad[0]
    dh, ds, *found = run((dout, dnext, h, s, kept, shared, *weights, seed, *ctx.settings, wanted))
    trained = iter(found)
    learned = 12 if ctx.settings[0] == "paper" else 10
    slots = [
        next(trained) if i < learned and weight is not None else None for i, weight in enumerate(weights)
    ]
    return dh if wanted else None, ds, *slots, None, *(None,) * len(ctx.settings)


def _backward_of_op(ctx: Any, dout: Tensor | None, dnext: Tensor | None, *unused: object) -> tuple[Any, ...]:
    return _gradients(ctx, dout, dnext, _backward_as_op)


def _backward_as_op(inputs: tuple[Any, ...]) -> list[Tensor]:
    return backward_op(*inputs)


forward_op.register_autograd(_backward_of_op, setup_context=_remember)


class _Boundary(torch.autograd.Function):
    """`forward_op` without the custom operation around it."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward(inputs)
        _remember(ctx, inputs, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dnext: Tensor | None) -> tuple[Any, ...]:
        # A backward pass may be compiled though its forward pass was not (compiled autograd).
        return _gradients(ctx, dout, dnext, _backward_as_op if torch.compiler.is_compiling() else _backward)
