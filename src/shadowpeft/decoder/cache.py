"""One key-value cache for base and shadow, so that every operation acts on both."""

import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, StaticCache


class ShadowCache(Cache):
    """The cached keys and values of L base layers and k shadow layers, in one list.

    Cropping, reordering, repeating and resetting are transformers' own loops over `layers`, so both halves
    always stay in step. `base` and `shadow` are the two halves as the decoders expect them: their layers are
    numbered from 0 and are the same objects as in the whole.

    Args:
        base: an empty cache for the base's configuration.
        shadow: an empty cache for the shadow's configuration.
    """

    def __init__(self, base: Cache, shadow: Cache) -> None:
        Cache.__init__(self, layers=[*base.layers, *shadow.layers])
        self.base = Cache(layers=base.layers)
        self.shadow = Cache(layers=shadow.layers)


class StaticShadowCache(ShadowCache, StaticCache):
    """Static halves; transformers asks for the class to keep the mask that flash attention then needs."""


def dynamic_cache(base: PretrainedConfig, shadow: PretrainedConfig) -> ShadowCache:
    """Make a cache that grows with the sequence."""
    return ShadowCache(DynamicCache(config=base), DynamicCache(config=shadow))


def static_cache(base: PretrainedConfig, shadow: PretrainedConfig, max_length: int) -> ShadowCache:
    """Make a cache with room for `max_length` tokens, allocated once."""
    return StaticShadowCache(
        StaticCache(config=base, max_cache_len=max_length),
        StaticCache(config=shadow, max_cache_len=max_length),
    )


def filling_mask(mask_BT: Tensor | None, cache: Cache | None, tokens: int) -> Tensor | None:
    """Pad a mask to the number of keys that `cache` will return for the next `tokens` tokens.

    A static cache returns all its room. A 4-dimensional mask, and one without a cache, is returned as it is.
    """
    if mask_BT is None or cache is None or mask_BT.ndim != 2:
        return mask_BT
    keys, _ = cache.get_mask_sizes(tokens, 0)
    return F.pad(mask_BT, (0, keys - mask_BT.shape[1]))
