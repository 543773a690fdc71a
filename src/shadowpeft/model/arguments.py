"""Which arguments of a call base and shadow take; a call with another is refused before it runs."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig
from transformers.utils import TransformersKwargs

from shadowpeft.checked_fields import nearest
from shadowpeft.errors import UserError

_ALL_MODELS = frozenset(TransformersKwargs.__optional_keys__)
# A decoder that has no such argument drops it, as tokenizers for other families return it.
_DROPPED = "token_type_ids"
# Why an argument that some stock decoder takes is not taken.
_NOT_TAKEN = {
    "adapter_names": "a batch runs under one adapter; call once for each, with adapter=...",
    "output_router_logits": (
        "the routers are frozen, so a shadowed model has no auxiliary loss; leave it out, and set "
        "model.config.output_router_logits = False"
    ),
    "token_type_ids": "only the base would read them, and its shadow would not; leave them out",
    "logits_to_keep": "the whole last hidden state is returned; leave it out, and take a part of that",
    "encoder_hidden_states": "a shadowed decoder has no encoder beside it",
    "encoder_attention_mask": "a shadowed decoder has no encoder beside it",
}


def taken_by(decoder: nn.Module) -> frozenset[str]:
    """Return the names of the arguments that a stock decoder knows."""
    return frozenset(inspect.signature(decoder.forward).parameters) | _ALL_MODELS


def refuse(kwargs: Mapping[str, Any], taken: frozenset[str]) -> None:
    """Raise if an argument would be dropped, or would reach the base and not the shadow.

    Args:
        kwargs: the arguments beside those that a shadowed model names itself; `None` is not given, and
            neither is an output that is `False`.
        taken: what the base's decoder knows.

    Raises:
        UserError: names the argument.
    """
    for name, value in kwargs.items():
        if value is None or value is False:
            continue
        if name in _NOT_TAKEN and (name != _DROPPED or name in taken):
            raise UserError(f"{name} is not supported: {_NOT_TAKEN[name]}")
        if name not in taken and name != _DROPPED:
            raise UserError(f"there is no argument {name!r}{nearest(name, taken)}, and it would be ignored")


def outputs_by(config: PretrainedConfig, base: PretrainedConfig) -> dict[str, bool]:
    """Return the outputs of which a shadowed model's configuration says something else than its base's."""
    wanted = {
        "output_attentions": (config.output_attentions, base.output_attentions),
        "output_hidden_states": (config.output_hidden_states, base.output_hidden_states),
    }
    return {name: ours for name, (ours, stock) in wanted.items() if ours != stock}
