"""One key-value cache for base and shadow, so that every operation acts on both."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig, StaticCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
    StaticLayer,
    StaticSlidingWindowLayer,
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
        draft_rows: what the drafts over it are read from, if not from the base's own head.
        is_void: whether a pass was broken off whose tokens cannot be taken back.
    """

    is_of_assistant = False
    is_void = False
    draft_rows: Any = None
    # transformers' own name: whether the caller made it.
    _is_user_defined = False
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
    """Static halves; transformers asks for the class to keep the mask that flash attention then needs.

    Attributes:
        max_length: the number of tokens that there is room for.
    """

    def __init__(self, base: Cache, shadow: Cache, adapter: str, shadow_blocks: int, max_length: int) -> None:
        ShadowCache.__init__(self, base, shadow, adapter, shadow_blocks)
        self.max_length = max_length

    def keeps_keys_alone(self) -> bool:
        """Return whether no layer keeps anything but keys and values, all of them or a window."""
        return all(type(layer) in (StaticLayer, StaticSlidingWindowLayer) for layer in self._filled())

    def can_crop_each(self) -> bool:
        """Return whether the length is all that tells what a layer holds."""
        return all(type(layer) is StaticLayer for layer in self._filled())

    def crop_to(self, tokens: int) -> None:
        """Crop every layer to its first `tokens` tokens, by writing back the length.

        The keys behind it stay, are masked, and are written over. A few kernels for all layers, none of which
        the host waits for; `StaticLayer.crop` needs one a layer, and is not in every version of transformers.
        """
        lengths = [layer.cumulative_length for layer in self._filled()]
        torch._foreach_zero_(lengths)
        torch._foreach_add_(lengths, tokens)

    def settle(self) -> None:
        """After a pass was broken off, allow no other: nobody noted how many tokens there were."""
        if self._before_pass is not None:
            self._before_pass, self.is_void = None, True

    def _length(self) -> int:
        # It is on the device, and each pass would wait for it.
        return 0


def dynamic_cache(base: PretrainedConfig, shadow: PretrainedConfig, adapter: str) -> ShadowCache:
    """Make a cache that grows with the sequence."""
    halves = DynamicCache(config=base), DynamicCache(config=shadow)
    return ShadowCache(*halves, adapter, shadow.num_hidden_layers)


def static_cache(
    base: PretrainedConfig, shadow: PretrainedConfig, adapter: str, max_length: int, slides: bool = True
) -> StaticShadowCache:
    """Make a cache with room for `max_length` tokens, allocated at its first use.

    Args:
        base: the base's configuration.
        shadow: the shadow's.
        adapter: the name of the adapter.
        max_length: tokens.
        slides: let sliding blocks keep no more than their window, from which no token can be taken back.
            Otherwise they keep all, and their masks hide what has left the window.
    """

    def half(config: PretrainedConfig) -> Cache:
        layers = StaticCache(config=config, max_cache_len=max_length).layers
        return Cache(layers=layers if slides else [_whole(layer, max_length) for layer in layers])

    return StaticShadowCache(half(base), half(shadow), adapter, shadow.num_hidden_layers, max_length)


def _whole(layer: Any, max_length: int) -> Any:
    """Return a layer that keeps all tokens in the place of one that slides."""
    return StaticLayer(max_length) if type(layer) is StaticSlidingWindowLayer else layer


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
