"""What is measured: a method, and for some how it is computed, from which block on, and whether torch.compile has the whole of it.

Written METHOD[:IMPL][@DEPTH], such as `lora`, `shadow:triton`, `shadow@1/2` or `lora@18`; `+compiled` is added to names in tables.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from shadowpeft.errors import ConfigError
from shadowpeft.settings import nearest

# Each method, whether it is for training alone, whether a depth can be given, whether it can be compiled whole.
_KNOWN: dict[str, tuple[bool, bool, bool]] = {
    "base": (False, False, True),
    "base-chunked": (True, False, True),
    "lora": (False, True, True),
    "lora-chunked": (True, True, True),
    "dora": (False, False, False),
    "peft-shadow": (False, False, False),
    "shadow-peft": (False, False, False),
    "shadow": (False, True, True),
}
IMPLS = ("auto", "reference", "compile", "triton")
_FORM = re.compile(r"([\w.-]+)(?::(\w+))?(?:@(\d+)(?:/(\d+))?)?")

_EVERYWHERE = "lora,dora,peft-shadow,shadow-peft,shadow,shadow:reference,shadow:compile,shadow:triton"
_UPPER = ",".join(f"{method}@{depth}" for depth in ("1/4", "1/2", "3/4") for method in ("shadow", "lora"))
DEFAULTS = {
    "train": f"base,base-chunked,{_EVERYWHERE},lora-chunked,{_UPPER}",
    "forward": f"base,{_EVERYWHERE}",
}


class Spec(NamedTuple):
    """One line of the table. `depth` is a block, or a share of the depth as (numerator, denominator); `None` for the method's own."""

    method: str
    impl: str | None = None
    depth: int | tuple[int, int] | None = None
    compiled: bool = False

    @property
    def name(self) -> str:
        """Write it as it is given, with `+compiled` where it is."""
        depth = (
            ""
            if self.depth is None
            else "@" + (f"{self.depth}" if isinstance(self.depth, int) else "/".join(map(str, self.depth)))
        )
        impl = "" if self.impl in (None, "auto") else f":{self.impl}"
        return f"{self.method}{impl}{depth}{'+compiled' * self.compiled}"

    def block(self, blocks: int) -> int | None:
        """Give the first adapted block of a model of so many.

        Raises:
            ConfigError: it is past the last block.
        """
        if self.depth is None:
            return None
        block = self.depth if isinstance(self.depth, int) else blocks * self.depth[0] // self.depth[1]
        if block >= blocks:
            raise ConfigError(
                f"{self.name}: inject_from must be below the model's {blocks} blocks, got {block}; choose another depth"
            )
        return block


def parse(methods: str, compiled: str, kind: str) -> list[Spec]:
    """Read the two lists of the command line: what is measured as it is, and what is measured compiled as well.

    Args:
        methods: names, separated by commas.
        compiled: names, separated by commas; `all` for every one of `methods` that can be.
        kind: `train` or `forward`.

    Raises:
        ConfigError: a name, implementation or depth is not known, or not of this kind of measurement.
    """
    plain = [_spec(text, kind) for text in _split(methods)]
    if not plain:
        raise ConfigError(
            f"methods must name at least one, got {methods!r}; there are: {', '.join(_of(kind))}"
        )
    if compiled.strip() == "all":
        chosen = [spec for spec in plain if _KNOWN[spec.method][2] and spec.impl in (None, "auto")]
    else:
        chosen = [_spec(text, kind) for text in _split(compiled)]
    for spec in chosen:
        if not _KNOWN[spec.method][2]:
            can = ", ".join(name for name in _of(kind) if _KNOWN[name][2])
            raise ConfigError(f"compiled: {spec.method} cannot be compiled whole; what can: {can}")
    both = [*plain, *(spec._replace(compiled=True) for spec in chosen)]
    twice = next((spec for number, spec in enumerate(both) if spec in both[:number]), None)
    if twice:
        raise ConfigError(f"{twice.name} is named twice; once is enough")
    return both


def _split(names: str) -> Iterable[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _of(kind: str) -> list[str]:
    return [name for name, (training_only, *_) in _KNOWN.items() if kind == "train" or not training_only]


def _spec(text: str, kind: str) -> Spec:
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"methods: expected METHOD, METHOD:IMPL or METHOD@DEPTH, such as shadow:triton or lora@1/2, got {text!r}"
        )
    method, impl, block, parts = match.groups()
    if method not in _of(kind):
        raise ConfigError(
            f"there is no method {method!r} here{nearest(method, _of(kind))}; the methods are: {', '.join(_of(kind))}"
        )
    if impl is not None and method != "shadow":
        raise ConfigError(f"{text}: only shadow has implementations, {method} has none; leave out ':{impl}'")
    if impl is not None and impl not in IMPLS:
        raise ConfigError(
            f"{text}: there is no implementation {impl!r}{nearest(impl, IMPLS)}; there are: {', '.join(IMPLS)}"
        )
    if block is not None and not _KNOWN[method][1]:
        raise ConfigError(f"{text}: {method} takes no depth; shadow and lora do")
    depth = None if block is None else int(block) if parts is None else (int(block), int(parts))
    if isinstance(depth, tuple) and not depth[0] < depth[1]:
        raise ConfigError(
            f"{text}: a depth must be a block or a share below 1, such as 18 or 1/2, got {block}/{parts}"
        )
    return Spec(method, (impl or "auto") if method == "shadow" else None, depth)
