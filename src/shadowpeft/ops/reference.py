"""The method's equations as pure functions: the spec that every other implementation is compared with.

Shape legend: B batch, T tokens, D width of the base, R rank of the injection, U width of the update's
networks. Equation numbers are those of ShadowPEFT (arXiv 2604.19254, section 3). Weights are stored as
`nn.Linear` stores them, (out, in), so `W_down` of the paper (D x R) is `down_RD` here. They may have another
type than h and s, as float32 beside bfloat16; everything is computed in the type of h.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

DropoutSite = Literal["bottleneck", "delta"]


class InjectionWeights(NamedTuple):
    """`W_down` and `W_up` of eq. 3 for one block."""

    down_RD: Tensor
    up_DR: Tensor


class UpdateWeights(NamedTuple):
    """The two-layer networks `T` (eq. 5) and `G` (eq. 6) of one block, and the LayerNorm before them, if any.

    `norm` is `(weight_D, bias_D, eps)` or `None`; only the variant `peft` has biases. `gate_shift` is
    subtracted from the gate's logit: the larger it is, the longer a fresh shadow remembers its first state.
    """

    transform_in_UD: Tensor
    transform_in_U: Tensor | None
    transform_out_DU: Tensor
    transform_out_D: Tensor | None
    gate_in_UD: Tensor
    gate_in_U: Tensor | None
    gate_out_DU: Tensor
    gate_out_D: Tensor | None
    norm: tuple[Tensor, Tensor, float] | None
    activation: Literal["silu", "gelu"]
    gate_shift: float = 0.0


class Rule(NamedTuple):
    """The equations of a boundary: variant, strength of the injection, its dropout (0 outside training)."""

    variant: Literal["normed", "paper", "peft"]
    alpha: float
    dropout: float = 0.0


class Crossing(NamedTuple):
    """What takes h and s across one boundary, from block l to block l+1.

    `update_w` holds the weights of T and G. It is `None` where the state is still s^(0): before and at the
    first boundary that has an update. `inject_w` holds the two low-rank matrices of block l+1. It is `None`
    below the first injected block, where h stays as it is. `norm` is the frozen input norm of block l+1; only
    the variant `normed` reads through it.
    """

    update_w: UpdateWeights | None
    inject_w: InjectionWeights | None
    rule: Rule
    norm: Callable[[Tensor], Tensor]


def read(h_BTD: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """Read the hidden state as the next block does, through its input norm, at unit scale (variant `normed`).

    x = N(h) / rms(N(h))

    Args:
        h_BTD: what the previous block put out.
        norm: the next block's frozen input norm.

    Returns:
        The reading, with the shape and type of `h_BTD`.
    """
    return unit(norm(h_BTD)).to(h_BTD.dtype)


def unit(x_BTD: Tensor) -> Tensor:
    """Bring each token's vector to unit root mean square, in float32 at least: x / rms(x)."""
    wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    return (wide_BTD * (wide_BTD.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x_BTD.dtype)


def correct(
    h_BTD: Tensor, x_BTD: Tensor, s_BTD: Tensor, w: InjectionWeights, alpha: float, dropout: float = 0.0
) -> Tensor:
    """Correct a block's input by its distance to the shadow state, both at unit scale.

    delta = x - s;  h' = h + alpha * mean|h| * Dropout(silu(delta W_down)) W_up

    This takes the place of eq. 2 to 4 in the variant `normed`. Where norms follow a block's outputs, the rows
    of `up_DR` (one a channel) come multiplied by those norms' weights (`arch.output_gains`).

    Args:
        h_BTD: what the previous block put out.
        x_BTD: its reading.
        s_BTD: the shadow state after the previous block.
        w: the two low-rank matrices.
        alpha: the strength of the correction.
        dropout: the probability of dropping a value of the bottleneck; 0 outside training.

    Returns:
        The corrected block input, with the shape and type of `h_BTD`.
    """
    low_BTR = _dropped(F.silu(_linear(x_BTD - s_BTD, w.down_RD)), dropout)
    # In proportion to the mean size of a coordinate: the scale of hidden states differs a thousandfold over
    # depth and between models, and a few coordinates are far larger than the others, which hardly moves the
    # mean.
    wide = torch.promote_types(h_BTD.dtype, torch.float32)
    size_BT1 = h_BTD.abs().mean(-1, keepdim=True, dtype=wide).to(h_BTD.dtype)
    return (h_BTD + alpha * size_BT1 * _linear(low_BTR, w.up_DR)).to(h_BTD.dtype)


def inject(
    h_BTD: Tensor,
    s_BTD: Tensor,
    w: InjectionWeights,
    alpha: float,
    dropout: float = 0.0,
    site: DropoutSite = "bottleneck",
) -> Tensor:
    """Correct a block's input by the low-rank image of its distance to the shadow state (eq. 2 to 4).

    delta = h - s;  h' = h + alpha * Dropout(delta W_down) W_up

    Args:
        h_BTD: what the previous block put out.
        s_BTD: the shadow state after the previous block.
        w: the two low-rank matrices.
        alpha: the strength of the correction.
        dropout: the probability of dropping a value; 0 outside training.
        site: what is dropped: the rank-R bottleneck (variant `paper`) or delta itself (variant `peft`).

    Returns:
        The corrected block input, with the shape and type of `h_BTD`.
    """
    delta_BTD = h_BTD - s_BTD
    if site == "delta":
        delta_BTD = _dropped(delta_BTD, dropout)
    low_BTR = _linear(delta_BTD, w.down_RD)
    if site == "bottleneck":
        low_BTR = _dropped(low_BTR, dropout)
    return (h_BTD + alpha * _linear(low_BTR, w.up_DR)).to(h_BTD.dtype)


def update(h_BTD: Tensor, s_BTD: Tensor, w: UpdateWeights, dropout: float = 0.0) -> Tensor:
    """Move the shadow state towards what the block put out, as far as a learned gate lets it (eq. 5 to 7).

    t = T(norm(h));  g = sigmoid(G(norm(h)) - shift);  s' = (1 - g) * s + g * t

    Args:
        h_BTD: what the block put out; in the variant `normed` its reading.
        s_BTD: the shadow state before the block.
        w: the weights of T and G.
        dropout: the probability of dropping a hidden value of T; only the variant `paper` has it, in
            training.

    Returns:
        The shadow state after the block, with the shape and type of `s_BTD`.
    """
    x_BTD = h_BTD
    if w.norm is not None:
        weight_D, bias_D, eps = w.norm
        weight_D, bias_D = _cast(weight_D, h_BTD.dtype), _cast(bias_D, h_BTD.dtype)
        x_BTD = F.layer_norm(h_BTD, h_BTD.shape[-1:], weight_D, bias_D, eps)
    act = F.silu if w.activation == "silu" else F.gelu
    hidden_BTU = _dropped(act(_linear(x_BTD, w.transform_in_UD, w.transform_in_U)), dropout)
    t_BTD = _linear(hidden_BTU, w.transform_out_DU, w.transform_out_D)
    g_BTD = _linear(act(_linear(x_BTD, w.gate_in_UD, w.gate_in_U)), w.gate_out_DU, w.gate_out_D)
    if w.gate_shift:
        g_BTD = g_BTD - w.gate_shift
    g_BTD = g_BTD.sigmoid()
    return ((1 - g_BTD) * s_BTD + g_BTD * t_BTD).to(s_BTD.dtype)


def _linear(x_BTX: Tensor, weight_YX: Tensor, bias_Y: Tensor | None = None) -> Tensor:
    """Compute x W^T + b in the type of x: trained weights are float32, and the stream has the base's type."""
    if bias_Y is not None:
        bias_Y = _cast(bias_Y, x_BTX.dtype)
    return F.linear(x_BTX, _cast(weight_YX, x_BTX.dtype), bias_Y)


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    # The question takes the host less than a cast that does nothing.
    return weight if weight.dtype == dtype else weight.to(dtype)


def _dropped(values: Tensor, dropout: float) -> Tensor:
    """Drop values with a probability; 0 outside training."""
    return F.dropout(values, dropout) if dropout > 0 else values


def boundary(h_BTD: Tensor, s_BTD: Tensor, crossing: Crossing) -> tuple[Tensor, Tensor]:
    """Cross from block l to block l+1: update after block l, then inject before block l+1 (eq. 2 to 7).

    (h_out^(l), s^(l-1)) -> (h^(l+1), s^(l))

    Both halves read the same two tensors, which is why a fast implementation fuses them. There is no boundary
    after the last block: nobody would read the result of its update.

    Args:
        h_BTD: what block l put out.
        s_BTD: the shadow state before block l.
        crossing: the weights, the rule and the norm of this boundary.

    Returns:
        The input of block l+1 and the new shadow state, with the shapes and types of `h_BTD` and `s_BTD`.
    """
    update_w, inject_w, rule, norm = crossing
    if rule.variant == "normed":
        x_BTD = read(h_BTD, norm)
        if update_w is not None:
            s_BTD = update(x_BTD, s_BTD, update_w)
        if inject_w is not None:
            h_BTD = correct(h_BTD, x_BTD, s_BTD, inject_w, alpha=rule.alpha, dropout=rule.dropout)
        return h_BTD, s_BTD
    paper = rule.variant == "paper"
    site: DropoutSite = "bottleneck" if paper else "delta"
    if update_w is not None:
        s_BTD = update(h_BTD, s_BTD, update_w, dropout=rule.dropout if paper else 0.0)
    if inject_w is not None:
        h_BTD = inject(h_BTD, s_BTD, inject_w, alpha=rule.alpha, dropout=rule.dropout, site=site)
    return h_BTD, s_BTD
