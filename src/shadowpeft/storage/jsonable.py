"""What JSON has no word for."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """Replace the floats that JSON has no word for, NaN and the infinities, by `None`, in nested lists and dictionaries too."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
