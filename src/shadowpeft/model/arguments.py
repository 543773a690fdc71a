"""Which arguments of a call base and shadow take; a call with another is refused before it runs."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils import TransformersKwargs

from shadowpeft import arch
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


def text_alone(kwargs: Mapping[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    """Return a call's arguments without the marks of images, which for text are zero.

    Args:
        kwargs: what a processor may have returned beside the ids.
        config: the base's configuration.

    Raises:
        UserError: there is an image, a video or sound among them.
    """
    is_multimodal = arch.multimodal_of(config) is not None
    marks = arch.MARKS_OF_IMAGES if is_multimodal else arch.MARKS_OF_IMAGES - {_DROPPED}
    for name, value in kwargs.items():
        if (name in arch.NOT_TEXT and value is not None) or (name in marks and _any(value)):
            raise UserError(
                f"{name} is not supported: the shadow sits in the language model and reads text alone; give "
                "a prompt without images, videos and sound"
            )
    return {name: value for name, value in kwargs.items() if name not in marks}


def refuse_three_positions(position_ids: Tensor | None) -> None:
    """Raise if positions are those of images: three for each token.

    Raises:
        UserError: says the shape that was given.
    """
    if position_ids is not None and position_ids.ndim > 2:
        raise UserError(
            "position_ids must have one position for each token of text, (B, T), got the shape "
            f"{tuple(position_ids.shape)}; leave them out where there are no images"
        )


def _any(marks: Any) -> bool:
    return marks is not None and bool(torch.as_tensor(marks).any())


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
