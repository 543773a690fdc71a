"""What every class of settings shares: names that are near, ranges, gaps and lists of names."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from shadowpeft.errors import ConfigError

# Metadata of a field that holds several names, separated by commas: in a file they may be a list.
SEVERAL = {"several": True}


def nearest(word: object, known: Iterable[str]) -> str:
    """Suggest the known name nearest to a misspelt one, ready to append to a message; empty if none is near."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def refuse_gaps(settings: Any, optional: Iterable[str]) -> None:
    """Refuse a dataclass of settings in which one has no value that must have one.

    Raises:
        ConfigError: names it.
    """
    for entry in dataclasses.fields(settings):
        if vars(settings)[entry.name] is None and entry.name not in optional:
            raise ConfigError(f"{entry.name} must have a value, got null")


def refuse_below(settings: Any, least: Mapping[str, float], above_0: Iterable[str]) -> None:
    """Refuse a dataclass of settings in which one is below its least value, or 0 or less where it must be above; `None` passes.

    Raises:
        ConfigError: names it.
    """
    for name, bound in least.items():
        value = vars(settings)[name]
        if value is not None and not value >= bound:  # nor NaN
            raise ConfigError(f"{name} must be {bound} or more, got {value!r}")
    for name in above_0:
        value = vars(settings)[name]
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be above 0, got {value!r}")
