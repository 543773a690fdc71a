"""How far a frozen head's answer to one state is from its answer to another, without the logits of a batch.

Shape legend: N tokens, n of them at hand, D width of the base, V vocabulary, K likeliest tokens.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from shadowpeft.losses import frozen_head
from shadowpeft.losses.frozen_head import LOGITS_AT_A_TIME, Head, LossesAndDerivatives, log_softmax

# Both sides' logits and their gradient's intermediate results are at hand at once.
_AT_A_TIME = LOGITS_AT_A_TIME // 4


def divergences(
    s_ND: Tensor, h_ND: Tensor, head: Head, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Compute tau^2 KL(p || q) of each token.

    Here p = softmax(head(h) / tau) is the base's answer and q = softmax(head(s) / tau) the shadow's. tau^2
    keeps the size of the gradient, whose share in the logits shrinks with 1 / tau^2. Only `s_ND` gets a
    gradient.

    Args:
        s_ND: what the head reads of the shadow.
        h_ND: what it reads of the base.
        head: the frozen head of both.
        temperature: tau.
        top_k: distinguish only the K tokens that the base finds likeliest, and count all others as one event.
            By default all are distinguished.

    Returns:
        One loss a token, (N,).
    """
    head, (s_ND, h_ND) = frozen_head.ready(head, s_ND, h_ND.detach())
    if top_k is not None and top_k >= len(head.weight_VD):
        top_k = None
    differentiate = frozen_head.wants_gradient(s_ND)
    # In a compiled graph one operation, as in `linear_ce`; only pretraining, which is not compiled, asks for
    # the likeliest tokens alone.
    if torch.compiler.is_compiling() and top_k is None:
        losses_N, _ = _operation(s_ND, h_ND, *head[:3], temperature, differentiate)
        return losses_N
    compute = partial(
        _losses_and_derivatives,
        h_ND=h_ND,
        head=head,
        temperature=temperature,
        top_k=top_k,
        differentiate=differentiate,
    )
    return frozen_head.apply(s_ND, None, compute)


def _losses_and_derivatives(
    s_ND: Tensor, h_ND: Tensor, head: Head, temperature: float, top_k: int | None, differentiate: bool
) -> LossesAndDerivatives:
    sweep = partial(_sweep, head=head, temperature=temperature, differentiate=differentiate)
    if top_k is not None:
        sweep = partial(
            _sweep_top_k, head=head, temperature=temperature, top_k=top_k, differentiate=differentiate
        )
    return frozen_head.swept(sweep, (s_ND, h_ND), frozen_head.tokens_at_a_time(head, _AT_A_TIME))


@frozen_head.operation(
    "shadowpeft::divergences",
    refusal="the divergence from a frozen head's answer can be differentiated once",
)
def _operation(
    s_ND: Tensor,
    h_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    softcap: float | None,
    temperature: float,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    head = Head(weight_VD, bias_V, softcap)
    return _losses_and_derivatives(s_ND, h_ND, head, temperature, top_k=None, differentiate=differentiate)


def _sweep(
    s_nD: Tensor, h_nD: Tensor, head: Head, temperature: float, differentiate: bool
) -> LossesAndDerivatives:
    """Return tau^2 KL(p || q) and, if wanted (else no rows), its derivative tau (q - p) cap' W.

    cap' is 1 without a cap. It is written out, as autograd is off inside of an operation.
    """
    # In place where that can be, as all of this is reading and writing logits.
    log_p_nV, logits_nV = head.log_probabilities(h_nD, temperature), head.logits(s_nD)
    log_q_nV = log_softmax(logits_nV, temperature)
    cap_derivative_nV = head.cap_derivative(logits_nV)
    del logits_nV
    p_nV = log_p_nV.exp()
    loss_n = temperature**2 * torch.linalg.vecdot(p_nV, log_p_nV.sub_(log_q_nV))
    if not differentiate:
        return loss_n, s_nD[:0]
    derivative_nV = log_q_nV.exp_().sub_(p_nV)
    if cap_derivative_nV is not None:
        derivative_nV *= cap_derivative_nV
    return loss_n, temperature * (derivative_nV.to(head.weight_VD.dtype) @ head.weight_VD)


def _sweep_top_k(
    s_nD: Tensor, h_nD: Tensor, head: Head, temperature: float, top_k: int, differentiate: bool
) -> LossesAndDerivatives:
    """Return the same for the likeliest tokens alone, by autograd, as the derivative has no short form."""
    log_p_nV = head.log_probabilities(h_nD, temperature)
    with torch.set_grad_enabled(differentiate):
        x_nD = s_nD.detach().requires_grad_(differentiate)
        loss_n = temperature**2 * _coarse(log_p_nV, head.log_probabilities(x_nD, temperature), top_k)
        if not differentiate:
            return loss_n, s_nD[:0]
        (derivative_nD,) = torch.autograd.grad(loss_n.sum(), x_nD)
    return loss_n.detach(), derivative_nD


def divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Compute KL(p || q) of each row, (N,), from log probabilities."""
    return F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(-1)


def _coarse(log_p_nV: Tensor, log_q_nV: Tensor, top_k: int) -> Tensor:
    """Compute the divergence when all but the K likeliest tokens are one event.

    It is never more than that of all tokens, and still 0 only where p = q on the K.
    """
    chosen_nK = log_p_nV.topk(top_k, -1).indices
    return divergence(*(_with_rest(log_nV, chosen_nK) for log_nV in (log_p_nV, log_q_nV)))


def _with_rest(log_nV: Tensor, chosen_nK: Tensor) -> Tensor:
    """Return the log probabilities of the chosen tokens and, behind them, of all others together."""
    rest_n1 = log_nV.scatter(-1, chosen_nK, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_nV.gather(-1, chosen_nK), rest_n1], -1)
