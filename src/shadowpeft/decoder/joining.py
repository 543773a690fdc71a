"""The caches of several texts as one: rows put below rows, and taken out again.

Texts end at the right. A shorter one has padding before it, which no mask may show. Shapes in names: B rows,
T cached tokens.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Layers that hold one key and one value for each token, and nothing else. Others, such as recurrent states
# and the keys of an indexer, are not padded by zeros.
_OF_TOKENS = (DynamicLayer, DynamicSlidingWindowLayer)


def can_join(cache: Cache) -> bool:
    """Return whether rows of such a cache can be joined, padded on the left and taken out."""
    return all(type(layer) in _OF_TOKENS for layer in cache.layers)


def join(cache: Cache, other: Cache) -> None:
    """Put the rows of another cache below those of this one, both padded to the longer of the two.

    Args:
        cache: written to; both halves of a `ShadowCache` share its layers.
        other: has the same layers.
    """
    tokens = max(cache.get_seq_length(), other.get_seq_length())
    layers: Any = zip(cache.layers, other.layers, strict=True)
    for layer, more in layers:
        # Blocks that read the keys of others fill no layer.
        if not more.is_initialized:
            continue
        layer.keys = _below(layer.keys, more.keys)
        layer.values = _below(layer.values, more.values)
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = tokens


def keep_rows(cache: Cache, rows_B: Tensor, padding: int) -> None:
    """Keep some rows, and drop the first tokens, which are padding in all of these.

    Args:
        cache: written to.
        rows_B: the indices of the rows that stay.
        padding: how many tokens are dropped.
    """
    layers: Any = cache.layers
    for layer in layers:
        if not layer.is_initialized:
            continue
        dropped = padding
        if isinstance(layer, DynamicSlidingWindowLayer):
            # What left the window is gone already.
            assert layer.keys is not None
            dropped = max(0, padding - (layer.cumulative_length - layer.keys.shape[-2]))
            layer.cumulative_length -= padding
        layer.keys = layer.keys[rows_B, :, dropped:]
        layer.values = layer.values[rows_B, :, dropped:]


def _below(above: Tensor, below: Tensor) -> Tensor:
    tokens = max(above.shape[-2], below.shape[-2])
    return torch.cat([F.pad(part, (0, 0, tokens - part.shape[-2], 0)) for part in (above, below)])
