"""How seldom a draft from one state would be taken by another, through one frozen head and without logits.

A draft drawn from q is taken with probability sum_v min(p_v, q_v), where p is the answer that it is put to
(arXiv 2211.17192). Its negative logarithm is the LK loss (arXiv 2602.23881).

Shape legend: N tokens, n of them at hand, D width of the base, V vocabulary.
"""

from functools import partial

import torch
from torch import Tensor

from shadowpeft.losses import frozen_head
from shadowpeft.losses.frozen_head import LOGITS_AT_A_TIME, Head, LossesAndDerivatives, log_softmax

# As in `divergence`: both sides' logits and what their gradient needs are at hand at once.
_AT_A_TIME = LOGITS_AT_A_TIME // 4


def lk_losses(s_ND: Tensor, h_ND: Tensor, head: Head) -> Tensor:
    """Compute -log sum_v min(p_v, q_v) of each token.

    Here p = softmax(head(h)) is the attached answer and q = softmax(head(s)) the draft's. Only `s_ND` gets a
    gradient.

    Args:
        s_ND: what the head reads of the shadow.
        h_ND: what it reads of the base.
        head: the frozen head of both.

    Returns:
        One loss a token, (N,).
    """
    head, (s_ND, h_ND) = frozen_head.ready(head, s_ND, h_ND.detach())
    differentiate = frozen_head.wants_gradient(s_ND)
    # In a compiled graph one operation, as in `linear_ce`.
    if torch.compiler.is_compiling():
        losses_N, _ = _operation(s_ND, h_ND, *head[:3], differentiate)
        return losses_N
    compute = partial(_losses_and_derivatives, h_ND=h_ND, head=head, differentiate=differentiate)
    return frozen_head.apply(s_ND, None, compute)


def lk_loss(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Compute the loss of each row, (N,), from log probabilities."""
    return -torch.minimum(log_p_NV, log_q_NV).logsumexp(-1)


def _losses_and_derivatives(
    s_ND: Tensor, h_ND: Tensor, head: Head, differentiate: bool
) -> LossesAndDerivatives:
    sweep = partial(_sweep, head=head, differentiate=differentiate)
    return frozen_head.swept(sweep, (s_ND, h_ND), frozen_head.tokens_at_a_time(head, _AT_A_TIME))


@frozen_head.operation(
    "shadowpeft::lk_losses",
    refusal="the LK loss of a frozen head's answers can be differentiated once",
)
def _operation(
    s_ND: Tensor,
    h_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    return _losses_and_derivatives(s_ND, h_ND, Head(weight_VD, bias_V, softcap), differentiate)


def _sweep(s_nD: Tensor, h_nD: Tensor, head: Head, differentiate: bool) -> LossesAndDerivatives:
    """Return the losses and, if wanted (else no rows), their derivatives.

    With w = softmax(min(log p, log q)), and m_v = 1 where q_v is the smaller and else 0, the derivative by
    the logits of q is q sum_v m_v w_v - m w. No factor in it is above 1, however small the overlap is.
    """
    log_p_nV, logits_nV = head.log_probabilities(h_nD, 1.0), head.logits(s_nD)
    log_q_nV = log_softmax(logits_nV, 1.0)
    cap_derivative_nV = head.cap_derivative(logits_nV)
    del logits_nV
    q_is_smaller_nV = log_q_nV < log_p_nV
    log_min_nV = torch.minimum(log_p_nV, log_q_nV, out=log_p_nV)
    log_overlap_n1 = log_min_nV.logsumexp(-1, keepdim=True)
    loss_n = -log_overlap_n1[:, 0]
    if not differentiate:
        return loss_n, s_nD[:0]
    mw_nV = log_min_nV.sub_(log_overlap_n1).exp_().mul_(q_is_smaller_nV)
    derivative_nV = log_q_nV.exp_().mul_(mw_nV.sum(-1, keepdim=True)).sub_(mw_nV)
    if cap_derivative_nV is not None:
        derivative_nV *= cap_derivative_nV
    return loss_n, derivative_nV.to(head.weight_VD.dtype) @ head.weight_VD
