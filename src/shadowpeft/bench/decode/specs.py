"""What is measured: a method, how its boundary is computed, and how long its drafts are.

Written METHOD or METHOD:IMPL, such as `lora-merged` or `shadow:triton`. `draft` stands for one line of the
table for each number of `draft_tokens`.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from shadowpeft.bench.specs import IMPLS
from shadowpeft.checked_fields import nearest, split
from shadowpeft.errors import ConfigError

METHODS = (
    "base", "lora", "lora-merged", "dora-merged", "peft-shadow", "shadow", "detached", "draft",
)  # fmt: skip
OURS = ("shadow", "draft")
EVERYTHING = (
    "base,lora,lora-merged,dora-merged,peft-shadow,shadow,shadow:reference,shadow:compile,shadow:triton,"
    "detached,draft"
)
Way = Literal["generate", "graph", "compiled"]
WAYS: tuple[Way, ...] = get_args(Way)

DraftTokens = int | Literal["auto"]


class DecodeSpec(NamedTuple):
    """What one line of the table measures.

    Attributes:
        method: one of `METHODS`.
        impl: how our boundary is computed; `None` for other methods.
        draft_tokens: `draft_tokens` of `generate`; `None` where nothing is drafted.
    """

    method: str
    impl: str | None = None
    draft_tokens: DraftTokens | None = None

    @property
    def name(self) -> str:
        """The words of the command line, and the length of a draft."""
        name = self.method
        if self.impl not in (None, "auto"):
            name += f":{self.impl}"
        return name if self.draft_tokens is None else f"{name} {self.draft_tokens}"


def specs_of(methods: str, draft_tokens: str) -> list[DecodeSpec]:
    """Read two lists of the command line.

    Args:
        methods: names, separated by commas.
        draft_tokens: numbers or `auto`, separated by commas.

    Raises:
        ConfigError: one of them is unknown, or is named twice.
    """
    lengths = [_length(text) for text in split(draft_tokens)]
    found = [spec for text in split(methods) for spec in _specs(text, lengths)]
    if not found:
        raise ConfigError(
            "methods must name at least one, and draft needs one of draft_tokens; got "
            f"{methods!r} and {draft_tokens!r}; the methods are: {', '.join(METHODS)}"
        )
    for place, spec in enumerate(found):
        if spec in found[:place]:
            raise ConfigError(f"{spec.name} is named twice; once is enough")
    return found


def ways_of(ways: str) -> list[Way]:
    """Read the list of ways.

    Raises:
        ConfigError: one of them is unknown, or is named twice, or there is none.
    """
    names = split(ways)
    for place, name in enumerate(names):
        if name not in WAYS:
            raise ConfigError(
                f"there is no way {name!r}{nearest(name, WAYS)}; the ways are: {', '.join(WAYS)}"
            )
        if name in names[:place]:
            raise ConfigError(f"ways names {name} twice; once is enough")
    if not names:
        raise ConfigError(f"ways must name at least one; the ways are: {', '.join(WAYS)}")
    return [way for way in WAYS if way in names]


def _specs(text: str, lengths: Iterable[DraftTokens]) -> list[DecodeSpec]:
    method, colon, impl = text.partition(":")
    if method not in METHODS:
        raise ConfigError(
            f"there is no method {method!r} here{nearest(method, METHODS)}; "
            f"the methods are: {', '.join(METHODS)}"
        )
    if method not in OURS:
        if colon:
            raise ConfigError(
                f"{text}: {method} has no implementations, shadow and draft do; leave out ':{impl}'"
            )
        return [DecodeSpec(method)]
    impl = impl if colon else "auto"
    if impl not in IMPLS:
        raise ConfigError(
            f"{text}: there is no implementation {impl!r}{nearest(impl, IMPLS)}; "
            f"there are: {', '.join(IMPLS)}"
        )
    if method == "draft":
        return [DecodeSpec(method, impl, length) for length in lengths]
    return [DecodeSpec(method, impl)]


def _length(text: str) -> DraftTokens:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"draft_tokens must be whole numbers, 1 or more, or auto, separated by commas; got {text!r}"
        )
    return int(text)
