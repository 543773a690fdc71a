"""Short names of models for tables and pictures."""

from collections.abc import Callable, Sequence
from pathlib import PurePath

# Folders of models have these names whatever is in them.
_SAYS_NOTHING = ("model", "base", "checkpoint", "final", "merged", "output")


def short(names: Sequence[str]) -> Callable[[str], str]:
    """Return what shortens models to as few last parts of their names as distinguish them.

    A folder with a name such as `model` keeps two parts at least.
    """
    longest = max((len(PurePath(name).parts) for name in names), default=0)
    for count in range(1, 1 + longest):
        last = {name: _last_parts(name, count) for name in names}
        if len(set(last.values())) == len(last):
            return lambda name: last.get(name, name)
    return lambda name: name


def _last_parts(name: str, count: int) -> str:
    path = PurePath(name)
    if not path.name:
        return name
    if path.name in _SAYS_NOTHING:
        count = max(count, 2)
    return str(PurePath(*path.parts[-count:]))
