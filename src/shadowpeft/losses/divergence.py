"""How far a frozen head's answer to one state is from its answer to another, without holding the logits of a batch.

Shape legend: N tokens, n of them in hand, D width of the base, V vocabulary, K likeliest tokens.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from transformers import PreTrainedModel

from shadowpeft import arch
from shadowpeft.losses.linear_ce import CACHED_LOGITS, LOGITS_AT_A_TIME

# Both sides' logits and their gradient's intermediate results are in hand at once.
_AT_A_TIME = LOGITS_AT_A_TIME // 4


class Head(NamedTuple):
    """The base's frozen head: logits = cap(x W^T + b)."""

    weight_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Head":
        """Read it off the base."""
        head = arch.head_of(base)
        return cls(head.weight, head.bias, arch.softcap_of(base))

    def logits(self, x_nD: Tensor) -> Tensor:
        """Apply it, in float32 from the product on."""
        logits_nV = F.linear(x_nD, self.weight_VD, self.bias_V)
        logits_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
        return logits_nV if self.softcap is None else self.softcap * (logits_nV / self.softcap).tanh()

    def log_probabilities(self, x_nD: Tensor, temperature: float) -> Tensor:
        """Apply it and the softmax, flattened by the temperature."""
        logits_nV = self.logits(x_nD)
        return F.log_softmax(logits_nV if temperature == 1 else logits_nV / temperature, -1)

    def to(self, dtype: torch.dtype) -> "Head":
        """Cast weight and bias."""
        return Head(
            self.weight_VD.to(dtype), None if self.bias_V is None else self.bias_V.to(dtype), self.softcap
        )


def divergences(
    s_ND: Tensor, h_ND: Tensor, head: Head, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Compute tau^2 KL(p || q) of each token, where p = softmax(head(h) / tau) is the base's and q = softmax(head(s) / tau) the shadow's.

    Only `s_ND` gets a gradient, computed beside the loss while a few tokens' logits are in hand, so that those of a batch are never
    held. tau^2 keeps the gradient's size (its share in logits shrinks with 1 / tau^2).

    Args:
        s_ND: what the shadow gives the head to read.
        h_ND: what the base gives it.
        head: the frozen head of both.
        temperature: tau.
        top_k: tell only the K tokens that the base finds likeliest apart; all others are one event. By default all are told apart.

    Returns:
        One loss a token, (N,).
    """
    kind = s_ND.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        s_ND, h_ND, head = s_ND.to(dtype), h_ND.to(dtype), head.to(dtype)
    if top_k is not None and top_k >= len(head.weight_VD):
        top_k = None
    differentiate = torch.is_grad_enabled() and s_ND.requires_grad
    h_ND = h_ND.detach()
    # In a compiled graph one operation, as in `linear_ce`; only pretraining, which is not compiled, asks for the likeliest tokens alone.
    if torch.compiler.is_compiling() and top_k is None:
        losses_N, _ = _operation(s_ND, h_ND, *head, temperature, differentiate)
    else:
        losses_N, _ = _Divergences.apply(s_ND, h_ND, head, temperature, top_k, differentiate)
    return losses_N


def _losses_and_slopes(
    s_ND: Tensor, h_ND: Tensor, head: Head, temperature: float, top_k: int | None, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Return each token's loss and, if wanted, its derivative by s_ND (else no rows), a few tokens at a time."""
    logits = min(_AT_A_TIME, CACHED_LOGITS) if s_ND.device.type == "cpu" else _AT_A_TIME
    size = max(1, logits // len(head.weight_VD))
    parts = []
    with torch.autocast(s_ND.device.type, enabled=False):
        for s_nD, h_nD in zip(s_ND.split(size), h_ND.split(size), strict=True):
            if top_k is None:
                parts.append(_told_apart(s_nD, h_nD, head, temperature, differentiate))
            else:
                parts.append(_by_autograd(s_nD, h_nD, head, temperature, top_k, differentiate))
    return torch.cat([loss_n for loss_n, _ in parts]), torch.cat([slope_nD for _, slope_nD in parts])


def _scaled(slope_ND: Tensor, grad_N: Tensor) -> Tensor:
    """Scale the slopes by the gradients of the losses; a token whose loss does not count sends nothing, be its slope no number."""
    return torch.where(grad_N[:, None] != 0, slope_ND * grad_N[:, None], 0).to(slope_ND.dtype)


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        s_ND: Tensor,
        h_ND: Tensor,
        head: Head,
        temperature: float,
        top_k: int | None,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        losses_N, slope_ND = _losses_and_slopes(s_ND, h_ND, head, temperature, top_k, differentiate)
        ctx.save_for_backward(slope_ND)
        ctx.mark_non_differentiable(slope_ND)
        return losses_N, slope_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N: Tensor, *_: Tensor) -> tuple:  # type: ignore[no-untyped-def]
        (slope_ND,) = ctx.saved_tensors
        return _scaled(slope_ND, grad_N), None, None, None, None, None


@torch.library.custom_op("shadowpeft::divergences", mutates_args=())
def _operation(
    s_ND: Tensor,
    h_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    temperature: float,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `_Divergences` as one operation of a graph, whatever the number of tokens."""
    return _losses_and_slopes(s_ND, h_ND, Head(weight_VD, bias_V, softcap), temperature, None, differentiate)


@_operation.register_fake
def _(s_ND, h_ND, weight_VD, bias_V, softcap, temperature, differentiate):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(s_ND.dtype, torch.float32)
    tokens, width = s_ND.shape  # not len(), which would tie the graph to one number of tokens
    return s_ND.new_empty(tokens, dtype=wide), s_ND.new_empty((tokens if differentiate else 0, width))


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx, grad_N, grad_slope):  # type: ignore[no-untyped-def]
    if grad_slope is not None:
        raise RuntimeError("the divergence from a frozen head's answer can be differentiated once")
    (slope_ND,) = ctx.saved_tensors
    return _scaled(slope_ND, grad_N), None, None, None, None, None, None


_operation.register_autograd(_backward, setup_context=_remember)


def _told_apart(
    s_nD: Tensor, h_nD: Tensor, head: Head, temperature: float, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Give tau^2 KL(p || q) and, if wanted (else no rows), its gradient tau (q - p) cap' W, where cap' is 1 without a cap.

    In place where that can be, as all of this is reading and writing logits. Written out, for within an operation autograd is off.
    """
    log_p_nV, logits_nV = head.log_probabilities(h_nD, temperature), head.logits(s_nD)
    log_q_nV = F.log_softmax(logits_nV if temperature == 1 else logits_nV / temperature, -1)
    bend_nV = None if head.softcap is None else 1 - (logits_nV / head.softcap).square_()
    del logits_nV
    p_nV = log_p_nV.exp()
    loss_n = temperature**2 * torch.linalg.vecdot(p_nV, log_p_nV.sub_(log_q_nV))
    if not differentiate:
        return loss_n, s_nD[:0]
    slope_nV = log_q_nV.exp_().sub_(p_nV)
    if bend_nV is not None:
        slope_nV *= bend_nV
    return loss_n, temperature * (slope_nV.to(head.weight_VD.dtype) @ head.weight_VD)


def _by_autograd(
    s_nD: Tensor, h_nD: Tensor, head: Head, temperature: float, top_k: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """The same for the likeliest tokens alone, which have no short gradient."""
    log_p_nV = head.log_probabilities(h_nD, temperature)
    with torch.set_grad_enabled(differentiate):
        x_nD = s_nD.detach().requires_grad_(differentiate)
        loss_n = temperature**2 * _coarse(log_p_nV, head.log_probabilities(x_nD, temperature), top_k)
        slope_nD = torch.autograd.grad(loss_n.sum(), x_nD)[0] if differentiate else s_nD[:0]
    return loss_n.detach(), slope_nD


def divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Compute KL(p || q) of each row, (N,), from log probabilities."""
    return F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(-1)


def _coarse(log_p_nV: Tensor, log_q_nV: Tensor, top_k: int) -> Tensor:
    """The divergence when the less likely tokens are one event: never more than that of all, and still 0 only where p = q on the K."""
    chosen_nK = log_p_nV.topk(top_k, -1).indices
    return divergence(*(_with_rest(log_nV, chosen_nK) for log_nV in (log_p_nV, log_q_nV)))


def _with_rest(log_nV: Tensor, chosen_nK: Tensor) -> Tensor:
    """Log-probabilities of the chosen tokens and, behind them, of all others together."""
    rest_n1 = log_nV.scatter(-1, chosen_nK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_nV.gather(-1, chosen_nK), rest_n1], -1)
