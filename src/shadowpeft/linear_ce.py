"""Cross-entropy of a frozen linear head without its logits: loss and gradient in one sweep, a few tokens at a time.

Shape legend: N tokens, n of them in hand, D width of the hidden states, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from shadowpeft.ops import choice

IGNORED = -100
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)
# Logits in hand at once, whatever the batch: 0.6 GB in float32. A thousand tokens of a vocabulary of 151,936, since a GPU multiplies
# much smaller matrices slower and reads the head once for each; smaller vocabularies are done in one go.
LOGITS_AT_A_TIME = 160 * 2**20
CACHED_LOGITS = 4 * 2**20  # on a CPU: 16 MB in float32 stay near it between the product, the softmax and the next product


def token_losses(x_ND: Tensor, targets_N: Tensor, weight_VD: Tensor, bias_V: Tensor | None = None, softcap: float | None = None) -> Tensor:
    """Compute -log softmax(z)[y] of each token, where z = x W^T + b, or cap * tanh of it / cap; 0 where there is no target.

    Only `x_ND` gets a gradient: d loss / d x = (softmax(z) - 1_y) W needs the logits, so it is computed beside the loss, while they
    are in hand, and the backward pass only scales it. Softmax and loss are in float32 at least. Under autocast both factors are cast as
    `nn.Linear` would cast them.

    Args:
        x_ND: what the head reads.
        targets_N: token ids, -100 for no loss.
        weight_VD: the head's weight, frozen.
        bias_V: its bias, frozen, if any.
        softcap: bound of the logits, if any.

    Returns:
        One loss a token, (N,).
    """
    kind = x_ND.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)  # here, once: autocast would cast a frozen weight anew for every chunk
        x_ND, weight_VD, bias_V = x_ND.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
    # A compiled graph fuses the softmax and is built for one count of chunks: the fewer there are, the more lengths share it.
    logits = LOGITS_AT_A_TIME if kind != "cpu" or torch.compiler.is_compiling() else min(LOGITS_AT_A_TIME, CACHED_LOGITS)
    at_a_time = max(1, logits // len(weight_VD))
    chunks = max(1, -(-len(x_ND) // at_a_time))
    differentiate = torch.is_grad_enabled() and x_ND.requires_grad
    with torch.autocast(kind, enabled=False):
        losses_N: Tensor = _TokenLosses.apply(x_ND, targets_N, weight_VD, bias_V, softcap, int(chunks), differentiate)
    return losses_N


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_ND: Tensor,
        targets_N: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        chunks: int,
        differentiate: bool,
    ) -> Tensor:
        aimed_N = targets_N != IGNORED
        y_N = torch.where(aimed_N, targets_N, 0)
        # A count of chunks, not their size, is what a compiled graph is built for: then batches of many lengths share one graph.
        size = -(-len(x_ND) // chunks)
        parts = []
        for i in range(chunks):
            part = slice(i * size, (i + 1) * size)
            parts.append(_sweep(x_ND[part], y_N[part], weight_VD, bias_V, softcap, differentiate))
        if differentiate:
            ctx.save_for_backward(torch.cat([slope_nD for _, slope_nD in parts]), aimed_N[:, None])
        return torch.where(aimed_N, torch.cat([loss_n for loss_n, _ in parts]), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N: Tensor) -> tuple:  # type: ignore[no-untyped-def]
        slope_ND, aimed_N1 = ctx.saved_tensors
        # Not a product with the mask: a mean over no token at all sends infinities.
        grad_ND = torch.where(aimed_N1, slope_ND * grad_N[:, None], 0).to(slope_ND.dtype)
        return grad_ND, None, None, None, None, None, None


def _sweep(
    x_nD: Tensor, y_n: Tensor, weight_VD: Tensor, bias_V: Tensor | None, softcap: float | None, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Return loss_n and, if wanted, d loss_n / d x_nD (else no rows) of some tokens."""
    logits_nV = F.linear(x_nD, weight_VD, bias_V)
    if differentiate and softcap is None and _has_kernel(logits_nV):
        from shadowpeft.ops.triton_slope import loss_and_slope

        loss_n = loss_and_slope(logits_nV, y_n)
        return loss_n, logits_nV @ weight_VD
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    if softcap is not None:
        bent_nV = (logits_nV.to(wide) / softcap).tanh_()
    log_p_nV = F.log_softmax(logits_nV if softcap is None else bent_nV * softcap, -1, dtype=wide)
    log_p_n1 = log_p_nV.gather(1, y_n[:, None])
    loss_n = -log_p_n1[:, 0]
    if not differentiate:
        return loss_n, x_nD[:0]
    # p - 1_y goes where the logits were, with p_y - 1 as expm1: near 1 the difference of two rounded numbers would lose it.
    if softcap is None:
        slope_nV = torch.exp(log_p_nV, out=logits_nV).scatter_(1, y_n[:, None], log_p_n1.expm1().to(logits_nV.dtype))
    else:
        slope_nV = log_p_nV.exp_().scatter_(1, y_n[:, None], log_p_n1.expm1())
        slope_nV = logits_nV.copy_(slope_nV.mul_(1 - bent_nV.square_()))
    return loss_n, slope_nV @ weight_VD


def _has_kernel(logits_nV: Tensor) -> bool:
    """Tell whether one kernel can take the place of what follows; a compiled graph makes its own."""
    return logits_nV.is_cuda and logits_nV.dtype in _KERNEL_TYPES and not torch.compiler.is_compiling() and choice.no_triton() is None
