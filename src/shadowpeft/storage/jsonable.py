"""Values made fit for JSON, which has no NaN and no infinity."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """Replace NaN and the infinities by `None`, in nested containers too; tuples become lists."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
