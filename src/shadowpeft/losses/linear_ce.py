"""Cross-entropy of a frozen linear head without its logits: loss and gradient in one sweep.

Shape legend: N tokens, n of them at hand, D width of the hidden states, V vocabulary.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowpeft.losses import frozen_head
from shadowpeft.losses.frozen_head import LOGITS_AT_A_TIME, Head, LossesAndDerivatives
from shadowpeft.ops import choice

IGNORED = -100
_KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def token_losses(x_ND: Tensor, targets_N: Tensor, head: Head) -> Tensor:
    """Compute -log softmax(z)[y] of each token, z the logits of the head; 0 where there is no target.

    Only `x_ND` gets a gradient: without a cap it is d loss / d x = (softmax(z) - 1_y) W. Softmax and loss are
    in float32 at least. Under autocast both factors are cast as `nn.Linear` would cast them.

    Args:
        x_ND: what the head reads.
        targets_N: token ids, -100 for no loss.
        head: the frozen head.

    Returns:
        One loss a token, (N,).
    """
    head, (x_ND,) = frozen_head.ready(head, x_ND)
    differentiate = frozen_head.wants_gradient(x_ND)
    aimed_N = targets_N != IGNORED
    y_N = torch.where(aimed_N, targets_N, 0)
    # In a compiled graph one operation: traced, it took twice the memory of its chunks (docs/develop/log.md).
    if torch.compiler.is_compiling():
        losses_N, _ = _operation(x_ND, y_N, aimed_N, *head[:3], differentiate)
    else:
        compute = partial(_losses_and_derivatives, y_N=y_N, head=head, differentiate=differentiate)
        losses_N = frozen_head.apply(x_ND, aimed_N, compute)
    return torch.where(aimed_N, losses_N, 0)


def _losses_and_derivatives(
    x_ND: Tensor, y_N: Tensor, head: Head, differentiate: bool
) -> LossesAndDerivatives:
    at_a_time = frozen_head.tokens_at_a_time(head, LOGITS_AT_A_TIME)
    # The fewest chunks, of one size rather than with a short last one.
    chunks = max(1, -(-len(x_ND) // at_a_time))
    even = max(1, -(-len(x_ND) // chunks))
    return frozen_head.swept(partial(_sweep, head=head, differentiate=differentiate), (x_ND, y_N), even)


@frozen_head.operation(
    "shadowpeft::token_losses",
    refusal="the loss of a frozen head can be differentiated once; "
    "pass skip_logits=False for second derivatives",
    counted=lambda x_ND, y_N, aimed_N, *_: aimed_N,
)
def _operation(
    x_ND: Tensor,
    y_N: Tensor,
    aimed_N: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    return _losses_and_derivatives(x_ND, y_N, Head(weight_VD, bias_V, softcap), differentiate)


def _sweep(x_nD: Tensor, y_n: Tensor, head: Head, differentiate: bool) -> LossesAndDerivatives:
    """Return loss_n and, if wanted, d loss_n / d x_nD (else no rows) of some tokens."""
    logits_nV = F.linear(x_nD, head.weight_VD, head.bias_V)
    if head.softcap is not None:
        return _sweep_capped(x_nD, logits_nV, y_n, head, differentiate)
    if differentiate and _has_kernel(logits_nV):
        from shadowpeft.losses.linear_ce_triton import loss_and_derivative

        loss_n = loss_and_derivative(logits_nV, y_n)
        return loss_n, logits_nV @ head.weight_VD
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    log_p_nV = F.log_softmax(logits_nV, -1, dtype=wide)
    log_p_n1 = log_p_nV.gather(1, y_n[:, None])
    loss_n = -log_p_n1[:, 0]
    if not differentiate:
        return loss_n, x_nD[:0]
    # p - 1_y goes where the logits were, with p_y - 1 as expm1: near 1 the difference of two rounded numbers
    # would lose it.
    p_nV = torch.exp(log_p_nV, out=logits_nV)
    derivative_nV = p_nV.scatter_(1, y_n[:, None], log_p_n1.expm1().to(logits_nV.dtype))
    return loss_n, derivative_nV @ head.weight_VD


def _sweep_capped(
    x_nD: Tensor, logits_nV: Tensor, y_n: Tensor, head: Head, differentiate: bool
) -> LossesAndDerivatives:
    """Do the same under a cap: z = cap * tanh(logits / cap), whose derivative is 1 - tanh^2."""
    assert head.softcap is not None
    wide = torch.promote_types(logits_nV.dtype, torch.float32)
    tanh_nV = (logits_nV.to(wide) / head.softcap).tanh_()
    log_p_nV = F.log_softmax(tanh_nV * head.softcap, -1, dtype=wide)
    log_p_n1 = log_p_nV.gather(1, y_n[:, None])
    loss_n = -log_p_n1[:, 0]
    if not differentiate:
        return loss_n, x_nD[:0]
    derivative_nV = log_p_nV.exp_().scatter_(1, y_n[:, None], log_p_n1.expm1())
    derivative_nV = logits_nV.copy_(derivative_nV.mul_(1 - tanh_nV.square_()))
    return loss_n, derivative_nV @ head.weight_VD


def _has_kernel(logits_nV: Tensor) -> bool:
    """Return whether one kernel can take the place of what follows."""
    return logits_nV.is_cuda and logits_nV.dtype in _KERNEL_TYPES and choice.no_triton() is None
