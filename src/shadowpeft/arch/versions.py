"""What differs between the versions of transformers that are supported: no other module asks for one.

transformers 5.24 calls the cache of keys and values `cache`; before, it was `past_key_values`. transformers
5.23 calls the switch that recomputes activations `activation_checkpointing`; before, it was
`gradient_checkpointing`. In what we hand to transformers the name must be its own: the former one gets a
warning in some places, and in others the cache is lost without one.
"""

import dataclasses
import functools
import warnings
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from shadowpeft.errors import UserError

OLDEST, NEWEST = "5.17", "5.24"

CACHE_NAMES = ("cache", "past_key_values")
# What this version calls them. Asked of its classes, not of its number: a nightly build has the number of the
# release to come.
CACHE = "past_key_values"
if "cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}:
    CACHE = "cache"
CHECKPOINTING = "gradient_checkpointing"
if "activation_checkpointing_enable" in dir(PreTrainedModel):
    CHECKPOINTING = "activation_checkpointing"


class CacheByBothNames:
    """A part of an output class: its cache can be read under both names. Listed before transformers' class.

    From 5.24 on, transformers itself knows the former name.
    """

    if CACHE != "cache":

        @property
        def cache(self) -> Any:
            """The cache, by its newer name."""
            return self.past_key_values  # type: ignore[attr-defined]


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """Return the cache that was given under one of its names.

    Raises:
        UserError: it was given under both.
    """
    if cache is not None and past_key_values is not None:
        raise UserError("give the cache once: `past_key_values` and `cache` are two names of one argument")
    return past_key_values if cache is None else cache


def with_own_cache_name(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call with the cache, if there is one, under this version's name.

    Raises:
        UserError: a cache was given under both names.
    """
    cache = one_cache(*(kwargs.get(name) for name in CACHE_NAMES))
    others = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    if cache is None:
        return others
    return {**others, CACHE: cache}


def bridge_former_cache_name(base: PreTrainedModel, shadow: nn.Module) -> None:
    """Let a library that knows the cache by its former name alone find it, whatever transformers calls it.

    Without it PEFT's Shadow (0.21.2) loses the shadow's cache from transformers 5.24 on: a generation goes on
    with wrong tokens, and nothing says so.

    Args:
        base: has the library's hooks: they read the cache under its former name, and write it under that.
        shadow: is called by the library under the former name.
    """
    to_former, to_own = (functools.partial(_rename_cache, name) for name in ("past_key_values", CACHE))
    base.register_forward_pre_hook(to_former, prepend=True, with_kwargs=True)
    for called in (base, shadow):
        called.register_forward_pre_hook(to_own, with_kwargs=True)


def _rename_cache(
    name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    given = [other for other in CACHE_NAMES if other in kwargs]
    if len(given) != 1:
        return args, kwargs
    others = {key: value for key, value in kwargs.items() if key not in CACHE_NAMES}
    return args, {**others, name: kwargs[given[0]]}


def recompute_activations(model: PreTrainedModel, use_reentrant: bool) -> None:
    """Let a transformers model compute activations again in the backward pass."""
    getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": use_reentrant})


def keep_activations(model: PreTrainedModel) -> None:
    """Undo `recompute_activations`."""
    getattr(model, f"{CHECKPOINTING}_disable")()


def show_window_alone(layer: DynamicSlidingWindowLayer) -> None:
    """Let a sliding layer that keeps its past return no more keys than the mask is made for.

    That of 5.17 returns all that it has kept, so a second pass without a crop between the two fails.
    """
    if _returns_all_it_keeps():
        layer.update = functools.partial(_update_window, layer)  # type: ignore[method-assign]


def show_all(layer: DynamicSlidingWindowLayer) -> None:
    """Undo `show_window_alone`."""
    vars(layer).pop("update", None)


@functools.cache
def _returns_all_it_keeps() -> bool:
    layer, one_11TD = DynamicSlidingWindowLayer(2), torch.zeros(1, 1, 1, 1)
    layer.activate_past_recording()
    return any(layer.update(one_11TD, one_11TD)[0].shape[2] > 2 for _ in range(3))


def _update_window(
    layer: DynamicSlidingWindowLayer, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    visible = layer.sliding_window - 1 + keys.shape[-2]
    keys, values = type(layer).update(layer, keys, values, *args, **kwargs)
    return keys[..., -visible:, :], values[..., -visible:, :]


@functools.cache
def warn_if_untested() -> None:
    """Warn, once in a process, if this transformers is older or newer than those that were tested."""
    release = Version(transformers.__version__).release[:2]
    if not Version(OLDEST).release <= release <= Version(NEWEST).release:
        warnings.warn(
            f"shadowpeft was tested with transformers {OLDEST} to {NEWEST}, and this is "
            f"{transformers.__version__}: results may be wrong",
            stacklevel=2,
        )
