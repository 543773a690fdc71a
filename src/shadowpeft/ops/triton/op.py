"""The fused boundary: `reference.boundary` as Triton kernels.

They keep nothing as wide as the model for the backward pass but h and s. Without one, a few rows have
kernels of their own (`rows`, and `strips` in a CUDA graph), to which `few` is the short way.

There are three custom operations, so that `torch.compile(fullgraph=True)` keeps them whole. Where nobody
looks at operations, the same functions run without them, as a custom operation costs the host more time. The
other kernels are in `forward` and `backward`; what they move and how long that takes:
docs/develop/kernels.md.
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
from shadowpeft.ops.reference import Crossing
from shadowpeft.ops.triton import few
from shadowpeft.ops.triton.case import (
    Arguments,
    Attributes,
    BackwardArguments,
    Weights,
    case_of,
    kept_widths,
)
from shadowpeft.ops.triton.launch import run_backward, run_forward
from shadowpeft.ops.triton.launch_few import run_rows
from shadowpeft.ops.triton.parts import DTYPES, INTERPRETED, ROWS_ALONE, WIDEST


def boundary(h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing) -> tuple[Tensor, Tensor]:
    """Compute `reference.boundary` with the fused kernels; arguments and results as there.

    Raises:
        ConfigError: they cannot serve; the message says why and which setting to change.
    """
    norm = _norm_of(crossing)
    crossed = _few(h_BTD, s_BTD, crossing, norm)
    if crossed is not None:
        return crossed
    reason = _refusal(h_BTD, s_BTD, crossing, norm)
    if norm is None or reason is not None:
        raise ConfigError(f"impl='triton' {reason}; set impl='auto' or 'reference'")
    return _fused(h_BTD, s_BTD, crossing, norm)


def boundary_or_reference(h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing) -> tuple[Tensor, Tensor]:
    """Compute `reference.boundary` with the fused kernels where they can serve, else as it is written."""
    norm = _norm_of(crossing)
    crossed = _few(h_BTD, s_BTD, crossing, norm)
    if crossed is not None:
        return crossed
    if norm is None or _refusal(h_BTD, s_BTD, crossing, norm) is not None:
        return reference.boundary(h_BTD, s_BTD, crossing)
    return _fused(h_BTD, s_BTD, crossing, norm)


def _norm_of(crossing: Crossing) -> arch.NormParts | None:
    """Return the norm that the kernels apply; `None` if they do not know it."""
    update_w, _, rule, norm = crossing
    if rule.variant == "normed":
        return arch.norm_parts(norm)
    if update_w is None or update_w.norm is None:
        return _NO_NORM
    weight_D, bias_D, eps = update_w.norm
    return arch.NormParts("layer", weight_D, bias_D, eps)


_NO_NORM = arch.NormParts("none")


def _few(
    h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing, norm: arch.NormParts | None
) -> tuple[Tensor, Tensor] | None:
    """Cross by the short way, where it serves."""
    if norm is None or _is_watched(h_BTD):
        return None
    return few.cross(h_BTD, s_BTD, crossing, norm)


def _fused(h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing, norm: arch.NormParts) -> tuple[Tensor, Tensor]:
    update_w, inject_w, rule, _ = crossing
    if update_w is None and inject_w is None:
        return h_BTD, s_BTD
    w = update_w or few.NO_UPDATE
    seed, dropout = None, 0.0
    if rule.dropout > 0 and (inject_w is not None or rule.variant == "paper"):
        # Drawn by torch, so that its seeds repeat it and checkpointing restores it; kept on the device, so
        # that nothing waits.
        seed, dropout = torch.randint(2**62, (1,), device=h_BTD.device), float(rule.dropout)
    attributes = Attributes(
        rule.variant,
        norm.kind,
        w.activation,
        alpha=float(rule.alpha),
        dropout=dropout,
        gate_shift=float(w.gate_shift),
        eps=float(norm.eps),
        offset=float(norm.offset),
    )
    weights, is_watched = Weights.of(w, inject_w, norm), _is_watched(h_BTD)
    if seed is None and _are_few(h_BTD) and not _wants_gradients(h_BTD, s_BTD, *weights):
        given = Arguments(h_BTD, s_BTD, weights, seed, attributes)
        out_BTD, next_BTD = rows_op(h_BTD, s_BTD, *weights, *attributes) if is_watched else _rows(given)
    else:
        cross = forward_op if is_watched else _Boundary.apply
        out_BTD, next_BTD, *_ = cross(h_BTD, s_BTD, *weights, seed, *attributes)
    if inject_w is not None:
        h_BTD = out_BTD
    if update_w is not None:
        s_BTD = next_BTD
    return h_BTD, s_BTD


def _refusal(h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing, norm: arch.NormParts | None) -> str | None:
    """Return why the kernels cannot serve a boundary, `None` if they can."""
    device = h_BTD.device
    if device.type != "cuda" and not INTERPRETED.value:
        return f"needs tensors on a GPU, got them on {device.type!r}"
    update_w, inject_w, *_ = crossing
    weights = []
    if update_w is not None:
        weights.append(update_w.transform_in_UD)
    if inject_w is not None:
        weights.append(inject_w.down_RD)
    for tensor in (h_BTD, s_BTD, *weights):
        if tensor.dtype not in DTYPES:
            return f"takes bfloat16 and float32, got {tensor.dtype}"
        if tensor.device != device:
            return f"needs hidden states and weights on one device, got {device} and {tensor.device}"
    # The norm is looked at again only where it is not known, for the message.
    norms = () if norm is not None else (crossing.norm,)
    return _unserved([weight.shape[0] for weight in weights], norms)


def require(dtype: torch.dtype, widths: Iterable[int], norms: Iterable[Callable[[Tensor], Tensor]]) -> None:
    """Refuse a model that the kernels cannot serve.

    Args:
        dtype: the type of the stream.
        widths: r and update_width.
        norms: the norms that are read through.

    Raises:
        ConfigError: says what is expected and which setting to change.
    """
    reason = _unserved(widths, norms)
    if dtype not in DTYPES:
        reason = f"takes bfloat16 and float32, got {dtype}"
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


def _is_watched(tensor: Tensor) -> bool:
    """Return whether somebody looks at operations.

    That is a compiler, a dispatch mode (selective checkpointing), or a subclass of `Tensor`.
    """
    return torch.compiler.is_compiling() or type(tensor) is not Tensor or is_in_torch_dispatch_mode()


def _are_few(h_BTD: Tensor) -> bool:
    return h_BTD.numel() <= ROWS_ALONE * h_BTD.shape[-1]


def _wants_gradients(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _rows(given: Arguments) -> tuple[Tensor, Tensor]:
    return run_rows(case_of(given), given)


def _forward(given: Arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return run_forward(case_of(given), given)


def _backward(given: BackwardArguments) -> list[Tensor]:
    return run_backward(case_of(given.forward), given)


@torch.library.custom_op("shadowpeft::boundary", mutates_args=())
def forward_op(
    h: Tensor, s: Tensor,
    tin: Tensor | None, tin_b: Tensor | None, tout: Tensor | None, tout_b: Tensor | None,
    gin: Tensor | None, gin_b: Tensor | None, gout: Tensor | None, gout_b: Tensor | None,
    down: Tensor | None, up: Tensor | None, norm_w: Tensor | None, norm_b: Tensor | None, seed: Tensor | None,
    variant: str, norm: str, activation: str,
    alpha: float, dropout: float, gate_shift: float, eps: float, offset: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute the forward pass as one operation.

    Returns:
        h' (empty without an injection), s' (empty without an update), and what is kept for the backward pass,
        for each row and for all rows.
    """
    return _forward(Arguments.grouped((
        h, s, tin, tin_b, tout, tout_b, gin, gin_b, gout, gout_b, down, up, norm_w, norm_b, seed,
        variant, norm, activation, alpha, dropout, gate_shift, eps, offset,
    )))  # fmt: skip


@forward_op.register_fake
def _(*flat):  # type: ignore[no-untyped-def]
    h, s, w, _seed, attributes = Arguments.grouped(flat)
    rows, (kept_width, shared_width) = h.numel() // h.shape[-1], kept_widths(w, attributes.norm == "layer")
    return (
        _fake_result(h, w.down is not None),
        _fake_result(s, w.tin is not None),
        h.new_empty(rows, kept_width, dtype=torch.float32),
        h.new_empty(shared_width, dtype=torch.float32),
    )


def _fake_result(like: Tensor, written: bool = True) -> Tensor:
    if not written:
        return like.new_empty(0)
    return torch.empty_like(like, memory_format=torch.contiguous_format)


@torch.library.custom_op("shadowpeft::boundary_of_rows", mutates_args=())
def rows_op(
    h: Tensor, s: Tensor,
    tin: Tensor | None, tin_b: Tensor | None, tout: Tensor | None, tout_b: Tensor | None,
    gin: Tensor | None, gin_b: Tensor | None, gout: Tensor | None, gout_b: Tensor | None,
    down: Tensor | None, up: Tensor | None, norm_w: Tensor | None, norm_b: Tensor | None,
    variant: str, norm: str, activation: str,
    alpha: float, dropout: float, gate_shift: float, eps: float, offset: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the forward pass of a few rows as one operation, without a gradient.

    Returns:
        h' (empty without an injection) and s' (empty without an update).
    """
    return _rows(Arguments.grouped((
        h, s, tin, tin_b, tout, tout_b, gin, gin_b, gout, gout_b, down, up, norm_w, norm_b, None,
        variant, norm, activation, alpha, dropout, gate_shift, eps, offset,
    )))  # fmt: skip


@rows_op.register_fake
def _(h, s, *flat):  # type: ignore[no-untyped-def]
    weights = Weights(*flat[: len(Weights._fields)])
    return _fake_result(h, weights.down is not None), _fake_result(s, weights.tin is not None)


@torch.library.custom_op("shadowpeft::boundary_backward", mutates_args=())
def backward_op(
    dout: Tensor | None, dnext: Tensor | None, h: Tensor, s: Tensor, kept: Tensor, shared: Tensor,
    tin: Tensor | None, tin_b: Tensor | None, tout: Tensor | None, tout_b: Tensor | None,
    gin: Tensor | None, gin_b: Tensor | None, gout: Tensor | None, gout_b: Tensor | None,
    down: Tensor | None, up: Tensor | None, norm_w: Tensor | None, norm_b: Tensor | None, seed: Tensor | None,
    variant: str, norm: str, activation: str,
    alpha: float, dropout: float, gate_shift: float, eps: float, offset: float, wanted: bool,
) -> list[Tensor]:  # fmt: skip
    """Compute the backward pass as one operation.

    Returns:
        The gradients of h (empty unless `wanted`), of s, and of the trained weights that there are, in order.
    """
    return _backward(BackwardArguments.grouped((
        dout, dnext, h, s, kept, shared,
        tin, tin_b, tout, tout_b, gin, gin_b, gout, gout_b, down, up, norm_w, norm_b, seed,
        variant, norm, activation, alpha, dropout, gate_shift, eps, offset, wanted,
    )))  # fmt: skip


@backward_op.register_fake
def _(*flat):  # type: ignore[no-untyped-def]
    given = BackwardArguments.grouped(flat)
    h, s, w, _seed, attributes = given.forward
    trained = w.trainable(attributes.trains_norm).present()
    return [_fake_result(h, given.wanted), *map(_fake_result, (s, *trained))]


def _remember(ctx: Any, given: Arguments, output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # the last s' is read by nobody, and what is kept has no gradient
    _out, _next, kept, shared = output
    ctx.save_for_backward(given.h, given.s, *given.weights, given.seed, kept, shared)
    ctx.attributes = given.attributes


def _remember_flat(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _remember(ctx, Arguments.grouped(inputs), output)


# Of the seed and the attributes.
_WITHOUT_GRADIENTS = (None,) * (1 + len(Attributes._fields))


def _gradients(
    ctx: Any, dout: Tensor | None, dnext: Tensor | None, run: Callable[[BackwardArguments], list[Tensor]]
) -> tuple[Any, ...]:
    """Return a gradient for each argument of `forward_op`, `None` where it has none."""
    h, s, *weights, seed, kept, shared = ctx.saved_tensors
    attributes: Attributes = ctx.attributes
    w, wanted = Weights(*weights), ctx.needs_input_grad[0]
    if dout is None and w.down is not None:
        dout = torch.zeros_like(h)
    given = Arguments(h, s, w, seed=seed, attributes=attributes)
    dh, ds, *found = run(BackwardArguments(dout, dnext, given, kept=kept, shared=shared, wanted=wanted))
    dw = w.trainable(attributes.trains_norm).placed(found)
    return dh if wanted else None, ds, *dw, *_WITHOUT_GRADIENTS


def _backward_of_op(ctx: Any, dout: Tensor | None, dnext: Tensor | None, *unused: object) -> tuple[Any, ...]:
    return _gradients(ctx, dout, dnext, _backward_as_op)


def _backward_as_op(given: BackwardArguments) -> list[Tensor]:
    return backward_op(*given.flat())


forward_op.register_autograd(_backward_of_op, setup_context=_remember_flat)


class _Boundary(torch.autograd.Function):
    """`forward_op` without the custom operation around it."""

    @staticmethod
    def forward(ctx: Any, *flat: Any) -> tuple[Tensor, Tensor]:
        given = Arguments.grouped(flat)
        output = _forward(given)
        _remember(ctx, given, output)
        return output[:2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dnext: Tensor | None) -> tuple[Any, ...]:
        # A backward pass may be compiled though its forward pass was not (compiled autograd).
        run = _backward_as_op if torch.compiler.is_compiling() else _backward
        return _gradients(ctx, dout, dnext, run)
