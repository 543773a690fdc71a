"""What the losses of a frozen head share: the head, the chunks, and a gradient computed beside the loss.

The head is frozen, so only the hidden states need a gradient, and that needs the logits. So each loss is a
sweep: it computes the logits of a few tokens, from them each token's loss and its derivative by the hidden
state, and drops them. The backward pass only scales the derivative. `linear_ce`, `divergence` and `overlap`
are such sweeps.

Shape legend: N tokens, n of them at hand, D width of the base, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from shadowpeft import arch

# Logits at hand at once, whatever the batch: 0.6 GB in float32. That is a thousand tokens of a vocabulary of
# 151,936, since a GPU multiplies much smaller matrices slower and reads the head once for each; smaller
# vocabularies are done in one go.
LOGITS_AT_A_TIME = 160 * 2**20
# The same on a CPU: 16 MB in float32 stay near it between the product, the softmax and the next product.
CACHED_LOGITS = 4 * 2**20

# Each token's loss, (N,), and its derivative by the hidden state, (N, D); (0, D) where it is not wanted.
LossesAndDerivatives = tuple[Tensor, Tensor]


class Head(NamedTuple):
    """The base's frozen head: logits = cap(factor (x W^T + b)).

    `ready` takes the factor out before anything is computed.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    factor: float = 1.0

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Head":
        """Return the head of a base."""
        head = arch.head_of(base)
        return cls(head.weight, head.bias, arch.softcap_of(base), arch.logit_factor(base))

    def logits(self, x_nD: Tensor) -> Tensor:
        """Compute the logits, in float32 at least from the product on."""
        logits_nV = F.linear(x_nD, self.weight_VD, self.bias_V)
        logits_nV = logits_nV.to(torch.promote_types(logits_nV.dtype, torch.float32))
        if self.softcap is None:
            return logits_nV
        return self.softcap * (logits_nV / self.softcap).tanh()

    def cap_derivative(self, logits_nV: Tensor) -> Tensor | None:
        """Compute the derivative of the cap, 1 - (logits / softcap)^2; `None` without a cap."""
        return None if self.softcap is None else 1 - (logits_nV / self.softcap).square_()

    def log_probabilities(self, x_nD: Tensor, temperature: float) -> Tensor:
        """Compute the logarithm of softmax(logits / temperature)."""
        return log_softmax(self.logits(x_nD), temperature)

    def to(self, dtype: torch.dtype) -> "Head":
        """Return the head with weight and bias in another type."""
        bias_V = None if self.bias_V is None else self.bias_V.to(dtype)
        return Head(self.weight_VD.to(dtype), bias_V, self.softcap, self.factor)


def log_softmax(logits_nV: Tensor, temperature: float) -> Tensor:
    """Compute the logarithm of softmax(logits / temperature)."""
    if temperature != 1:
        logits_nV = logits_nV / temperature
    return F.log_softmax(logits_nV, -1)


def ready(head: Head, *states_ND: Tensor) -> tuple[Head, Sequence[Tensor]]:
    """Move a head's factor into what it reads and its bias; under autocast, cast as `nn.Linear` casts."""
    kind = states_ND[0].device.type
    if head.factor != 1:
        states_ND = tuple(head.factor * state_ND for state_ND in states_ND)
        bias_V = None if head.bias_V is None else head.factor * head.bias_V
        head = Head(head.weight_VD, bias_V, head.softcap)
    if not torch.is_autocast_enabled(kind):
        return head, states_ND
    # Here, once: autocast would cast a frozen weight anew for every chunk.
    dtype = torch.get_autocast_dtype(kind)
    return head.to(dtype), [state_ND.to(dtype) for state_ND in states_ND]


def wants_gradient(x_ND: Tensor) -> bool:
    """Return whether the derivative has to be computed beside the loss."""
    return torch.is_grad_enabled() and x_ND.requires_grad


def tokens_at_a_time(head: Head, limit: int) -> int:
    """Return how many tokens' logits may be at hand at once if their number is `limit` on a GPU."""
    if head.weight_VD.device.type == "cpu":
        limit = min(limit, CACHED_LOGITS)
    return max(1, limit // len(head.weight_VD))


def swept(
    sweep: Callable[..., LossesAndDerivatives], tensors_N: Sequence[Tensor], at_a_time: int
) -> LossesAndDerivatives:
    """Run a sweep over tensors that have a row for each token, some tokens at a time."""
    with torch.autocast(tensors_N[0].device.type, enabled=False):
        chunks = zip(*(tensor_N.split(at_a_time) for tensor_N in tensors_N), strict=True)
        parts = [sweep(*chunk) for chunk in chunks]
        return torch.cat([loss_n for loss_n, _ in parts]), torch.cat([grad_nD for _, grad_nD in parts])


def apply(
    x_ND: Tensor, counted_N: Tensor | None, compute: Callable[[Tensor], LossesAndDerivatives]
) -> Tensor:
    """Compute the losses outside of a compiled graph, and let autograd scale the derivatives.

    Args:
        x_ND: the hidden states that get the gradient.
        counted_N: which tokens' losses count; `None` for those to whose loss a gradient comes.
        compute: the losses and derivatives of all tokens.
    """
    return _Losses.apply(x_ND, counted_N, compute)


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        counted_N: Tensor | None,
        compute: Callable[[Tensor], LossesAndDerivatives],
    ) -> Tensor:
        losses_N, derivative_ND = compute(x_ND)
        ctx.save_for_backward(derivative_ND, counted_N)
        return losses_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None, None]:
        derivative_ND, counted_N = ctx.saved_tensors
        return _scaled(derivative_ND, grad_N, counted_N), None, None


def operation(
    name: str, refusal: str, counted: Callable[..., Tensor | None] = lambda *_: None
) -> Callable[[Callable[..., LossesAndDerivatives]], Any]:
    """Make a function one operation of a compiled graph, whatever the number of tokens.

    Its first argument is the hidden states that get the gradient, its last whether derivatives are wanted.

    Args:
        name: the operation's name.
        refusal: what is said to a second derivative.
        counted: returns, from all arguments, which tokens' losses count, as in `apply`.
    """

    def remember(ctx: Any, inputs: tuple[Any, ...], output: LossesAndDerivatives) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], counted(*inputs))
        ctx.others = len(inputs) - 1

    def backward(ctx: Any, grad_N: Tensor, grad_derivative: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_derivative is not None:
            raise RuntimeError(refusal)
        derivative_ND, counted_N = ctx.saved_tensors
        return _scaled(derivative_ND, grad_N, counted_N), *(None,) * ctx.others

    def register(compute: Callable[..., LossesAndDerivatives]) -> Any:
        made = torch.library.custom_op(name, compute, mutates_args=())
        made.register_fake(_fake)
        made.register_autograd(backward, setup_context=remember)
        return made

    return register


def _fake(x_ND, *others):  # type: ignore[no-untyped-def]
    differentiate = others[-1]
    tokens, width = x_ND.shape  # not len(), which would tie the graph to one number of tokens
    losses_N = x_ND.new_empty(tokens, dtype=torch.promote_types(x_ND.dtype, torch.float32))
    return losses_N, x_ND.new_empty((tokens if differentiate else 0, width))


def _scaled(derivative_ND: Tensor, grad_N: Tensor, counted_N: Tensor | None) -> Tensor:
    """Scale each token's derivative by the gradient of its loss; a token that does not count gets 0."""
    if counted_N is None:
        counted_N = grad_N != 0
    # No product with a mask: a mean over no token at all sends infinities, and a derivative may be NaN.
    return torch.where(counted_N[:, None], derivative_ND * grad_N[:, None], 0).to(derivative_ND.dtype)
