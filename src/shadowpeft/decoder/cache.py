"""One key-value cache for base and shadow, so that every operation acts on both."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, StaticCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from shadowpeft.arch import versions
from shadowpeft.errors import UserError


class ShadowCache(Cache):
    """The cached keys and values of L base layers and k shadow layers, in one list.

    Cropping, reordering, repeating and resetting are transformers' own loops over `layers`, so both halves
    always stay in step. `base` and `shadow` are the two halves as the decoders expect them: their layers are
    numbered from 0 and are the same objects as in the whole.

    Args:
        base: an empty cache for the base's configuration.
        shadow: an empty cache for the shadow's configuration.
        adapter: the name of the adapter that it is filled under.
        shadow_blocks: k, the number of the shadow's blocks. Some keep no keys, and some versions of
            transformers then have no layer for them.

    Attributes:
        is_of_assistant: whether another model checks each token that is computed with it.
        is_void: whether a pass was broken off whose tokens cannot be taken back.
    """

    is_of_assistant = False
    is_void = False
    # How many tokens there were before the pass that runs now; `None` between two passes.
    _before_pass: int | None = None

    def __init__(self, base: Cache, shadow: Cache, adapter: str, shadow_blocks: int) -> None:
        Cache.__init__(self, layers=[*base.layers, *shadow.layers])
        self.adapter = adapter
        self.base = Cache(layers=base.layers)
        self.shadow = Cache(layers=shadow.layers)
        self.shadow_blocks = shadow_blocks

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens back: -n removes n.

        transformers leaves a recurrent state as it is. An assistant's drafts become worse by that, and what
        is written does not.

        Raises:
            UserError: a layer keeps a recurrent state, in which the tokens cannot be told apart.
        """
        for layer in () if self.is_of_assistant else self.layers:
            if isinstance(layer, LinearAttentionCacheLayerMixin) and not layer.is_croppable:
                raise UserError(
                    "this cache cannot be cropped: base or shadow keeps a recurrent state, from which no "
                    "token can be taken back; make a new cache and compute the tokens that stay again"
                )
        Cache.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Empty the cache."""
        Cache.reset(self)
        self.is_void, self._before_pass = False, None

    def begin_pass(self) -> None:
        """Note how many tokens there are before a pass."""
        self._before_pass = self._length()

    def end_pass(self) -> None:
        """Note that the pass is over, and every layer holds its tokens."""
        self._before_pass = None

    def settle(self) -> None:
        """After generation was broken off, take back the tokens of a pass that only some layers have seen."""
        before, self._before_pass = self._before_pass, None
        if before is None:
            return
        if not self.can_crop_each() or not all(_is_whole(layer) for layer in self._filled()):
            self.is_void = True
            return
        try:
            self.crop_to(before)
        except RuntimeError:  # a sliding window has moved on
            self.is_void = True

    def _length(self) -> int:
        return int(self.get_seq_length())

    def can_crop_each(self) -> bool:
        """Return whether every layer grows by the token, and can be cropped by the token."""
        return all(isinstance(layer, DynamicLayer) and layer.is_croppable for layer in self._filled())

    def crop_to(self, tokens: int) -> None:
        """Crop every layer to its first `tokens` tokens, also where one holds more than another.

        Sliding layers must keep their past (`keep_past`), and return to their window here.
        """
        for layer in self._filled():
            layer.crop(min(0, tokens - layer.get_seq_length()))

    def _filled(self) -> list[Any]:
        """Return the layers that hold anything: those of blocks that read the keys of others do not."""
        kinds = CacheLayerMixin | LinearAttentionCacheLayerMixin
        return [layer for layer in self.layers if isinstance(layer, kinds)]


def _is_whole(layer: Any) -> bool:
    """Return whether a layer has as many values as keys: it may have been left between the two."""
    if not layer.is_initialized:
        return True
    keys, values = layer.keys.shape[-2], layer.values.shape[-2]
    return bool(keys == values)


class StaticShadowCache(ShadowCache, StaticCache):
    """Static halves; transformers asks for the class to keep the mask that flash attention then needs."""

    def _length(self) -> int:
        # It is on the device, and tokens cannot be taken back anyway.
        return 0


def dynamic_cache(base: PretrainedConfig, shadow: PretrainedConfig, adapter: str) -> ShadowCache:
    """Make a cache that grows with the sequence."""
    halves = DynamicCache(config=base), DynamicCache(config=shadow)
    return ShadowCache(*halves, adapter, shadow.num_hidden_layers)


def static_cache(
    base: PretrainedConfig, shadow: PretrainedConfig, adapter: str, max_length: int
) -> ShadowCache:
    """Make a cache with room for `max_length` tokens, allocated once."""
    return StaticShadowCache(
        StaticCache(config=base, max_cache_len=max_length),
        StaticCache(config=shadow, max_cache_len=max_length),
        adapter,
        shadow.num_hidden_layers,
    )


def keep_past(cache: Cache) -> list[DynamicSlidingWindowLayer]:
    """Make sliding layers keep what leaves their window, so that rejected tokens can be cropped.

    Returns:
        The layers that did not before.
    """
    sliding = [layer for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    changed = [layer for layer in sliding if not layer.record_past]
    for layer in changed:
        layer.activate_past_recording()
        versions.show_window_alone(layer)
    return changed


def forget_past(layers: list[DynamicSlidingWindowLayer]) -> None:
    """Undo `keep_past` for layers that it returned."""
    for layer in layers:
        layer.record_past = False
        versions.show_all(layer)


def filling_mask(mask_BT: Tensor | None, cache: Cache | None, tokens: int) -> Tensor | None:
    """Pad a mask to the number of keys that `cache` will return for the next `tokens` tokens.

    A static cache returns all its room. A 4-dimensional mask, and one without a cache, is returned as it is.
    """
    if mask_BT is None or cache is None or mask_BT.ndim != 2:
        return mask_BT
    keys, _ = cache.get_mask_sizes(tokens, 0)
    return F.pad(mask_BT, (0, keys - mask_BT.shape[1]))
