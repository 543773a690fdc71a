"""What every class of settings shares: a field with its range, the check of all fields, and similar names.

A setting is one typed field. Its range stands beside its default, and its text below it. `check` reads the
type and the range.
"""

import dataclasses
import difflib
import math
import os
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from shadowpeft.errors import ConfigError

_RANGE = "range"
# Metadata of a field that holds several names, separated by commas. In a file they may be a list.
SEVERAL = {"several": True}
# What YAML 1.2 and jsonargparse take for a number beyond what YAML 1.1 does.
_NEWER_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?\Z|0o[0-7]+\Z")


class Range(NamedTuple):
    """The values that a number may have; `None` for no bound."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a number is in the range. NaN is in none."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """Say the range as a message does: `1 or more`, `above 0 and below 1`."""
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        words = (
            ("at least", self.least),
            ("above", self.above),
            ("at most", self.most),
            ("below", self.below),
        )
        bounds = [f"{word} {bound}" for word, bound in words if bound is not None]
        if bounds == [f"at least {self.least}"]:
            return f"{self.least} or more"
        return " and ".join(bounds)


def within(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """Make a field of a settings class that holds a number in a range."""
    return dataclasses.field(default=default, metadata={_RANGE: Range(least, above, most, below)})


def holding_several(settings: type) -> list[str]:
    """List the fields of a settings class that hold several names."""
    return [entry.name for entry in dataclasses.fields(settings) if entry.metadata == SEVERAL]


def changed(settings: Any, names: Iterable[str]) -> list[str]:
    """Return which of some fields hold another value than their default."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(settings)}
    return [name for name in names if settings.__dict__[name] != defaults[name]]


def check(settings: Any) -> None:
    """Refuse a value that a field's type or range does not allow, before anything is made from it.

    A path becomes its text, and a list of names the text with commas.

    Raises:
        ConfigError: names the field, what it may be and what was given.
    """
    hints, ranges = typing.get_type_hints(type(settings)), _ranges(type(settings))
    for entry in dataclasses.fields(settings):
        if str in _kinds(hints[entry.name]):
            text = _as_text(settings.__dict__[entry.name], several=entry.metadata == SEVERAL)
            object.__setattr__(settings, entry.name, text)
        _check_value(entry.name, settings.__dict__[entry.name], hints[entry.name], ranges.get(entry.name))


def _as_text(value: object, several: bool) -> object:
    """Return a path, or where there may be several names a number or a list, as text; all else as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if several and isinstance(value, list | tuple):
        return ",".join(str(_as_text(name, several)) for name in value)
    if several and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _ranges(settings: type) -> dict[str, Range]:
    """Return the ranges of a class's fields by name. A field that a subclass declares again keeps its own."""
    found: dict[str, Range] = {}
    for kind in reversed(settings.__mro__):
        if dataclasses.is_dataclass(kind):
            found |= {e.name: e.metadata[_RANGE] for e in dataclasses.fields(kind) if _RANGE in e.metadata}
    return found


def _check_value(name: str, value: object, hint: Any, allowed: Range | None) -> None:
    kinds = _kinds(hint)
    may_be_none = types.NoneType in kinds
    kinds = [kind for kind in kinds if kind is not types.NoneType]
    if value is None and may_be_none:
        return
    if value is None and typing.get_origin(kinds[0]) is not Literal:
        raise ConfigError(f"{name} must have a value, got null")
    # A union of several types, such as `bool | str`, is checked where its values are read.
    if len(kinds) != 1:
        return
    (kind,) = kinds
    if typing.get_origin(kind) is Literal:
        _check_choice(name, value, typing.get_args(kind))
    elif kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    elif kind is str and not isinstance(value, str):
        raise ConfigError(f"{name} must be text, got {value!r}")
    elif kind in (int, float):
        _check_number(name, value, kind, allowed or Range())


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
        raise ConfigError(f"{name} must be {listed}, got {value!r}{nearest(value, choices)}")


def _check_number(name: str, value: object, kind: type, allowed: Range) -> None:
    wanted, accepted = ("a whole number", int) if kind is int else ("a number", int | float)
    bounds = f", {allowed}" * (str(allowed) != "")
    # True and False are numbers in Python; as a setting of a number they are a mistake.
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise ConfigError(f"{name} must be {wanted}{bounds}, got {value!r}")
    if kind is float and not _is_float(value):
        raise ConfigError(f"{name} must be {wanted}{bounds}, got {value!r}")
    if not allowed.holds(value):
        said = f"{wanted}{bounds}" if kind is int else str(allowed)
        raise ConfigError(f"{name} must be {said}, got {value!r}")


def _is_float(value: float) -> bool:
    """Return whether a number has a value as a float: NaN has none, and some whole numbers are too large."""
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def _kinds(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return list(typing.get_args(hint))
    return [hint]


def as_yaml(values: dict[str, Any]) -> str:
    """Write settings as YAML in which every text is read back as text, whatever version of YAML reads it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """A dumper that quotes text that only newer readers take for a number, and escapes line breaks."""

    def written(dumper: Dumper, text: str) -> yaml.Node:
        # Outside double quotes PyYAML reads some line breaks back as spaces.
        style = '"' if len(text.splitlines()) > 1 else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _NEWER_NUMBER, list("-+.0123456789"))
    Dumper.add_representer(str, written)
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def nearest(word: object, known: Iterable[str]) -> str:
    """Return the known name nearest to a misspelt one, as the end of a message. Empty if none is near."""
    close = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def whole_numbers(name: str, text: str, least: int) -> list[int]:
    """Read a list of whole numbers.

    Raises:
        ConfigError: there is none, or one is something else or too small.
    """
    words = split(text)
    if not words or not all(word.isdecimal() and int(word) >= least for word in words):
        raise ConfigError(
            f"{name} must be whole numbers, separated by commas, each {least} or more; got {text!r}"
        )
    return [int(word) for word in words]


def split(names: str) -> list[str]:
    """Divide a list of the command line at its commas."""
    return [name.strip() for name in names.split(",") if name.strip()]
