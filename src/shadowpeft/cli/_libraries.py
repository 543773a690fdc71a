"""The libraries of an extra that a verb needs, looked for before any of its work."""

import importlib.util
from collections.abc import Sequence

from shadowpeft.errors import UserError


def require(work: str, libraries: Sequence[str], extra: str) -> None:
    """Refuse to begin where a library is not installed.

    Args:
        work: what needs them, as the message begins: `a study`.
        libraries: their names, as they are imported.
        extra: the extra that brings them.

    Raises:
        UserError: names those that are missing.
    """
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{work} needs {', '.join(missing)}; pip install 'shadowpeft[{extra}]'")
