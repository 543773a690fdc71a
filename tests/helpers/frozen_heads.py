"""Hidden states under a frozen head, the plain way to their losses, and the largest tensor of a run."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shadowpeft.losses.frozen_head import Head

VOCAB, WIDTH = 101, 12


def case(tokens, dtype=torch.float64, bias=False, spread=1.0, softcap=None):
    """Draw hidden states, targets (a third ignored, the last not), and a head with logits of this spread."""
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    targets = torch.randint(0, VOCAB, (tokens,), generator=generator)
    targets[torch.arange(tokens) % 3 == 1] = -100
    x, weight = draw(tokens, WIDTH).requires_grad_(), draw(VOCAB, WIDTH) * spread
    return x, targets, Head(weight, draw(VOCAB) if bias else None, softcap)


def plain(x, targets, head):
    """Compute the same losses from whole logits, in float32 at least."""
    logits = F.linear(x, head.weight_VD, head.bias_V)
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="none")


def value_and_gradient(function, x, *rest, **options):
    """Compute the losses and a gradient in which each token has its own weight."""
    x = x.detach().clone().requires_grad_()
    each = function(x, *rest, **options)
    (each * torch.linspace(0.5, 2.0, len(each), dtype=each.dtype)).sum().backward()
    return each.detach(), x.grad


class Largest(TorchDispatchMode):
    """Note the largest tensor, in elements of its storage, and the number of matrix products."""

    def __init__(self):
        super().__init__()
        self.elements, self.products = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.linear)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out
