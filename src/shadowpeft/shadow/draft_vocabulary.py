"""The draft vocabulary: the few tokens that a shadow drafts, so that its head reads few rows."""

from collections.abc import Iterable

import torch
from torch import Tensor

from shadowpeft.errors import ConfigError


def checked(ids: Tensor | Iterable[int], vocab_size: int) -> Tensor:
    """Return ids as an adapter keeps them: on the CPU and in order.

    Args:
        ids: the tokens, (N,), each once.
        vocab_size: how many tokens the base knows.

    Raises:
        ConfigError: they are no such ids.
    """
    ids_N = ids if isinstance(ids, Tensor) else torch.tensor(list(ids))
    if ids_N.ndim != 1 or ids_N.is_floating_point() or ids_N.dtype == torch.bool or not len(ids_N):
        raise ConfigError(
            "a draft vocabulary is a list of token ids, at least one, got a tensor of shape "
            f"{tuple(ids_N.shape)} and type {ids_N.dtype}"
        )
    ids_N = ids_N.detach().cpu().long().sort().values
    if ids_N[0] < 0 or ids_N[-1] >= vocab_size:
        raise ConfigError(
            f"a draft vocabulary holds ids from 0 to {vocab_size - 1}, the base's tokens, got "
            f"{int(ids_N[0] if ids_N[0] < 0 else ids_N[-1])}"
        )
    twice = ids_N[1:][ids_N[1:] == ids_N[:-1]]
    if len(twice):
        raise ConfigError(f"a draft vocabulary holds each id once, got {int(twice[0])} more often")
    return ids_N
