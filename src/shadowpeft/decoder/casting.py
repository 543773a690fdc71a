"""Casting a decoder as transformers does: what it computes from its configuration keeps its type."""

import torch
from torch import nn


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
