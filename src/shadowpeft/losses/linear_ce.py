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
CACHED_LOGITS = (
    4 * 2**20
)  # on a CPU: 16 MB in float32 stay near it between the product, the softmax and the next product


def token_losses(
    x_ND: Tensor,
    targets_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
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
        dtype = torch.get_autocast_dtype(
            kind
        )  # here, once: autocast would cast a frozen weight anew for every chunk
        x_ND, weight_VD, bias_V = (
            x_ND.to(dtype),
            weight_VD.to(dtype),
            None if bias_V is None else bias_V.to(dtype),
        )
    differentiate = torch.is_grad_enabled() and x_ND.requires_grad
    aimed_N = targets_N != IGNORED
    y_N = torch.where(aimed_N, targets_N, 0)
    # In a compiled graph one operation: traced, it took twice the memory of its chunks (docs/develop/log.md).
    losses_and_slopes = _operation if torch.compiler.is_compiling() else _TokenLosses.apply
    losses_N, _ = losses_and_slopes(x_ND, y_N, aimed_N, weight_VD, bias_V, softcap, differentiate)
    return torch.where(aimed_N, losses_N, 0)


def _losses_and_slopes(
    x_ND: Tensor,
    y_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """Return each token's loss and, if wanted, its derivative by x_ND (else no rows), a few tokens at a time."""
    logits = LOGITS_AT_A_TIME if x_ND.device.type != "cpu" else min(LOGITS_AT_A_TIME, CACHED_LOGITS)
    at_a_time = max(1, logits // len(weight_VD))
    chunks = max(1, -(-len(x_ND) // at_a_time))
    size = -(-len(x_ND) // chunks)
    with torch.autocast(x_ND.device.type, enabled=False):
        parts = []
        for i in range(chunks):
            part = slice(i * size, (i + 1) * size)
            parts.append(_sweep(x_ND[part], y_N[part], weight_VD, bias_V, softcap, differentiate))
        return torch.cat([loss_n for loss_n, _ in parts]), torch.cat([slope_nD for _, slope_nD in parts])


def _scaled(slope_ND: Tensor, aimed_N: Tensor, grad_N: Tensor) -> Tensor:
    """Scale the slopes by the gradients of the losses; not a product with the mask: a mean over no token at all sends infinities."""
    return torch.where(aimed_N[:, None], slope_ND * grad_N[:, None], 0).to(slope_ND.dtype)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x_ND: Tensor,
        y_N: Tensor,
        aimed_N: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        softcap: float | None,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        losses_N, slope_ND = _losses_and_slopes(x_ND, y_N, weight_VD, bias_V, softcap, differentiate)
        ctx.save_for_backward(slope_ND, aimed_N)
        ctx.mark_non_differentiable(slope_ND)
        return losses_N, slope_ND

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_N: Tensor, *_: Tensor) -> tuple:  # type: ignore[no-untyped-def]
        slope_ND, aimed_N = ctx.saved_tensors
        return _scaled(slope_ND, aimed_N, grad_N), None, None, None, None, None, None


@torch.library.custom_op("shadowpeft::token_losses", mutates_args=())
def _operation(
    x_ND: Tensor,
    y_N: Tensor,
    aimed_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """Compute `_TokenLosses` as one operation of a graph, whatever the number of tokens."""
    return _losses_and_slopes(x_ND, y_N, weight_VD, bias_V, softcap, differentiate)


@_operation.register_fake
def _(x_ND, y_N, aimed_N, weight_VD, bias_V, softcap, differentiate):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(x_ND.dtype, torch.float32)
    tokens, width = x_ND.shape  # not len(), which would tie the graph to one number of tokens
    return x_ND.new_empty(tokens, dtype=wide), x_ND.new_empty((tokens if differentiate else 0, width))


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[2])


def _backward(ctx, grad_N, grad_slope):  # type: ignore[no-untyped-def]
    if grad_slope is not None:
        raise RuntimeError(
            "the loss of a frozen head can be differentiated once; pass skip_logits=False for second derivatives"
        )
    slope_ND, aimed_N = ctx.saved_tensors
    return _scaled(slope_ND, aimed_N, grad_N), None, None, None, None, None, None


_operation.register_autograd(_backward, setup_context=_remember)


def _sweep(
    x_nD: Tensor,
    y_n: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """Return loss_n and, if wanted, d loss_n / d x_nD (else no rows) of some tokens."""
    logits_nV = F.linear(x_nD, weight_VD, bias_V)
    if differentiate and softcap is None and _has_kernel(logits_nV):
        from shadowpeft.losses.linear_ce_triton import loss_and_slope

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
        slope_nV = torch.exp(log_p_nV, out=logits_nV).scatter_(
            1, y_n[:, None], log_p_n1.expm1().to(logits_nV.dtype)
        )
    else:
        slope_nV = log_p_nV.exp_().scatter_(1, y_n[:, None], log_p_n1.expm1())
        slope_nV = logits_nV.copy_(slope_nV.mul_(1 - bent_nV.square_()))
    return loss_n, slope_nV @ weight_VD


def _has_kernel(logits_nV: Tensor) -> bool:
    """Tell whether one kernel can take the place of what follows."""
    return logits_nV.is_cuda and logits_nV.dtype in _KERNEL_TYPES and choice.no_triton() is None
