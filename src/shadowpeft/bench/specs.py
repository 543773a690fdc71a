"""What is measured: a method, its implementation, its first block, and whether it is compiled.

Written METHOD[:IMPL][@DEPTH], such as `lora`, `shadow:triton`, `shadow@1/2` or `lora@18`. Tables add
`+compiled` to the names of methods that torch.compile compiles as a whole.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from shadowpeft.checked_fields import nearest
from shadowpeft.errors import ConfigError


class _Traits(NamedTuple):
    """What a method can do."""

    trains_only: bool = False
    trains_nothing: bool = False
    takes_depth: bool = False
    compiles: bool = False


_KNOWN = {
    "base": _Traits(trains_nothing=True, compiles=True),
    "base-chunked": _Traits(trains_only=True, trains_nothing=True, compiles=True),
    "lora": _Traits(takes_depth=True, compiles=True),
    "lora-chunked": _Traits(trains_only=True, takes_depth=True, compiles=True),
    "lora-liger": _Traits(trains_only=True),
    "dora": _Traits(),
    "peft-shadow": _Traits(),
    "shadow-peft": _Traits(),
    "shadow": _Traits(takes_depth=True, compiles=True),
}
# Types of what is trained: float32, the base's own, and float32 under autocast.
TRAINED_IN = ("float32", "base", "autocast")
IMPLS = ("auto", "reference", "compile", "triton")
_FORM = re.compile(r"([\w.-]+)(?::(\w+))?(?:@(\d+)(?:/(\d+))?)?")

_EVERYWHERE = "lora,dora,peft-shadow,shadow-peft,shadow,shadow:reference,shadow:compile,shadow:triton"
_UPPER = ",".join(f"{method}@{depth}" for depth in ("1/4", "1/2", "3/4") for method in ("shadow", "lora"))
DEFAULTS = {
    "train": f"base,base-chunked,{_EVERYWHERE},lora-chunked,{_UPPER}",
    "forward": f"base,{_EVERYWHERE}",
}


class Spec(NamedTuple):
    """What one line of the table measures.

    Attributes:
        method: the method.
        impl: how our boundary is computed; `None` for other methods.
        depth: the first adapted block, or its share of the blocks as (numerator, denominator); `None` for the
            method's own.
        compiled: whether torch.compile compiles the method.
        trained_in: one of `TRAINED_IN`; `None` for a method that trains nothing.
    """

    method: str
    impl: str | None = None
    depth: int | tuple[int, int] | None = None
    compiled: bool = False
    trained_in: str | None = None

    def typed(self, types: Iterable[str]) -> "list[Spec]":
        """Return this with each type of what is trained."""
        if _KNOWN[self.method].trains_nothing:
            return [self]
        return [self._replace(trained_in=name) for name in types]

    @property
    def name(self) -> str:
        """The words of the command line, with `+compiled` if the method is compiled."""
        name = self.method
        if self.impl not in (None, "auto"):
            name += f":{self.impl}"
        if isinstance(self.depth, int):
            name += f"@{self.depth}"
        elif self.depth is not None:
            name += "@{}/{}".format(*self.depth)
        return name + "+compiled" * self.compiled

    def block(self, blocks: int) -> int | None:
        """Return the first adapted block of a model with so many blocks; `None` for the method's own.

        Raises:
            ConfigError: it is past the last block.
        """
        if self.depth is None:
            return None
        block = self.depth
        if not isinstance(block, int):
            numerator, denominator = block
            block = blocks * numerator // denominator
        if block >= blocks:
            raise ConfigError(
                f"{self.name}: inject_from must be below the model's {blocks} blocks, got {block}; "
                "choose another depth"
            )
        return block


def parse(methods: str, compiled: str, kind: str) -> list[Spec]:
    """Read the two lists of the command line: what is measured as it is, and what is also measured compiled.

    Args:
        methods: names, separated by commas.
        compiled: names, separated by commas; `all` for every one of `methods` that can be compiled.
        kind: `train` or `forward`.

    Raises:
        ConfigError: a name, implementation or depth is unknown, or does not belong to this kind of
            measurement.
    """
    plain = [_spec(text, kind) for text in _split(methods)]
    if not plain:
        raise ConfigError(
            f"methods must name at least one, got {methods!r}; there are: {', '.join(_of(kind))}"
        )
    if compiled.strip() == "all":
        chosen = [spec for spec in plain if _KNOWN[spec.method].compiles and spec.impl in (None, "auto")]
    else:
        chosen = [_spec(text, kind) for text in _split(compiled)]
    for spec in chosen:
        if not _KNOWN[spec.method].compiles:
            can = ", ".join(name for name in _of(kind) if _KNOWN[name].compiles)
            raise ConfigError(f"compiled: {spec.method} cannot be compiled whole; what can: {can}")
    both = [*plain, *(spec._replace(compiled=True) for spec in chosen)]
    twice = next((spec for number, spec in enumerate(both) if spec in both[:number]), None)
    if twice:
        raise ConfigError(f"{twice.name} is named twice; once is enough")
    return both


def _split(names: str) -> Iterable[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _of(kind: str) -> list[str]:
    """Return the methods of a kind of measurement."""
    return [name for name, traits in _KNOWN.items() if kind == "train" or not traits.trains_only]


def _spec(text: str, kind: str) -> Spec:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(
            "methods: expected METHOD, METHOD:IMPL or METHOD@DEPTH, such as shadow:triton or lora@1/2, "
            f"got {text!r}"
        )
    method, impl, block, parts = match.groups()
    if method not in _of(kind):
        raise ConfigError(
            f"there is no method {method!r} here{nearest(method, _of(kind))}; "
            f"the methods are: {', '.join(_of(kind))}"
        )
    if impl is not None and method != "shadow":
        raise ConfigError(f"{text}: only shadow has implementations, {method} has none; leave out ':{impl}'")
    if impl is not None and impl not in IMPLS:
        raise ConfigError(
            f"{text}: there is no implementation {impl!r}{nearest(impl, IMPLS)}; "
            f"there are: {', '.join(IMPLS)}"
        )
    if block is not None and not _KNOWN[method].takes_depth:
        raise ConfigError(f"{text}: {method} takes no depth; shadow and lora do")
    if method == "shadow":
        impl = impl or "auto"
    return Spec(method, impl, _depth(text, block, parts))


def _depth(text: str, block: str | None, parts: str | None) -> int | tuple[int, int] | None:
    """Read a block, or a share of the blocks.

    Raises:
        ConfigError: the share is not below 1.
    """
    if block is None:
        return None
    if parts is None:
        return int(block)
    if int(block) >= int(parts):
        raise ConfigError(
            f"{text}: a depth must be a block or a share below 1, such as 18 or 1/2, got {block}/{parts}"
        )
    return int(block), int(parts)
