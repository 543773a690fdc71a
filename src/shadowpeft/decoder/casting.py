"""Types of weights: cast as transformers casts them, and layers that compute in the type of what they read.

What is trained is float32, whatever the type of the base: in bfloat16 a step of 1e-4 of a weight's size is
lost to rounding. What is computed has the base's type. So each trained layer casts its weights when it is
called, and their gradients come back through the cast in float32. Nothing is kept between calls. With equal
types a layer computes what it always did, bit for bit.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D


def cast(module: nn.Module, device: torch.device, dtype: torch.dtype, *, stock: nn.Module) -> None:
    """Move a module, and cast its weights and its saved buffers.

    Stock buffers that are not saved, such as the frequencies of rotary embeddings, keep their type.
    transformers makes the frequencies in float32, whatever the type of the weights. Rounded to bfloat16 they
    are up to 0.4 % off, and the error of an angle grows with the position.

    Args:
        module: the module, changed in place.
        device: where it goes.
        dtype: type of its weights.
        stock: the part of it that is transformers' own. Our buffers are cast with the weights they go with.
    """
    kept = [
        (owner, name, buffer)
        for owner in stock.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if name in owner._non_persistent_buffers_set
    ]
    module.to(device=device, dtype=dtype)
    for owner, name, buffer in kept:
        owner.register_buffer(name, buffer.to(device), persistent=False)


def trained_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type that weights are trained in beside a base of type `dtype`: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def follow_inputs(module: nn.Module, table: nn.Embedding | None = None) -> None:
    """Make every layer of a module compute in the type of what it reads, whatever the type of its weights.

    The layers stay the same objects, with the same names and weights. Their classes become subclasses.

    Args:
        module: changed in place.
        table: embeddings of tokens; other tables of embeddings put out its type. It is left as it is.
    """
    for layer in module.modules():
        is_done = isinstance(layer, _FollowsInputs)
        if layer is table or is_done or not any(True for _ in layer.parameters(recurse=False)):
            continue
        layer.__class__ = _subclass(type(layer))  # type: ignore[arg-type]
        if isinstance(layer, nn.Embedding):
            # In a tuple, so that it does not become a part of this layer.
            layer.beside = (table,)  # type: ignore[assignment]


def stock_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a layer had before `follow_inputs`."""
    if isinstance(module, _FollowsInputs):
        return module.stock
    return type(module)


class _FollowsInputs:
    """A layer whose weights may have another type than what it reads."""

    stock: type[nn.Module]

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles make the subclass anew.
        return _empty, (self.stock,), self.__dict__


class _Linear(_FollowsInputs):
    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)  # type: ignore[misc]
        return F.linear(x, self.weight.to(x.dtype), _as(x, self.bias))


class _Conv1D(_FollowsInputs):
    """GPT-2's linear layer, whose weight is stored transposed."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)  # type: ignore[misc]
        return F.linear(x, self.weight.to(x.dtype).T, _as(x, self.bias))


class _LayerNorm(_FollowsInputs):
    normalized_shape: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)  # type: ignore[misc]
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), _as(x, self.bias), self.eps)


class _Norm(_FollowsInputs):
    """An RMS norm of any family. A product with its weight may widen the result, which is cast back."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x)  # type: ignore[misc]
        return found if found.dtype == x.dtype else found.to(x.dtype)


class _Embedding(_FollowsInputs):
    """Embeddings of positions, which are added to those of the tokens."""

    beside: tuple[nn.Embedding | None]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
        (table,) = self.beside
        return found if table is None else found.to(table.weight.dtype)


class _Other(_FollowsInputs):
    """Any other layer with weights of its own, such as the experts of a mixture."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own = dict(self.named_parameters(recurse=False))  # type: ignore[attr-defined]
        x: Tensor = next(iter((*args, *kwargs.values())))
        if all(weight.dtype == x.dtype for weight in own.values()):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        # Calls this method again, with weights of the right type in their places.
        lent = {name: weight.to(x.dtype) for name, weight in own.items()}
        return functional_call(self, lent, args, kwargs)  # type: ignore[arg-type]


@cache
def _subclass(stock: type[nn.Module]) -> type[nn.Module]:
    """Make the subclass of a stock layer. It has its parent's name, by which transformers knows layers."""
    body = {"stock": stock, "__module__": stock.__module__, "__qualname__": stock.__qualname__}
    return type(stock.__name__, (_kind(stock), stock), body)


# Computes what `nn.Linear` does, in other words.
_AS_LINEAR = ("FalconLinear",)


def _kind(stock: type[nn.Module]) -> type[_FollowsInputs]:
    kinds: dict[type[nn.Module], type[_FollowsInputs]] = {
        nn.Linear: _Linear, Conv1D: _Conv1D, nn.LayerNorm: _LayerNorm
    }  # fmt: skip
    # Of any class, because none can be called with weights of the type of the ids.
    if issubclass(stock, nn.Embedding):
        return _Embedding
    for parent, kind in kinds.items():
        # A subclass may compute something else, as a norm whose factors are its weight plus one.
        if issubclass(stock, parent) and (stock.forward is parent.forward or stock.__name__ in _AS_LINEAR):
            return kind
    return _Norm if stock.__name__.endswith("Norm") else _Other


def _empty(stock: type[nn.Module]) -> nn.Module:
    """Return an object of a subclass, whose state is set next."""
    cls = _subclass(stock)  # type: ignore[arg-type]
    return cls.__new__(cls)


def _as(x: Tensor, bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
