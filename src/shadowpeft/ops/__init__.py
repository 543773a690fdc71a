"""The operations of the method at a boundary between two blocks.

`reference` is the spec in plain torch, and every faster implementation is compared with it. `choice` picks
one of them; `triton` holds the fused kernels. Imports `config`, `errors` and `arch`.
"""

from shadowpeft.ops.reference import (
    Crossing,
    DropoutSite,
    InjectionWeights,
    Rule,
    UpdateWeights,
    boundary,
    correct,
    inject,
    read,
    unit,
    update,
)

__all__ = [
    "Crossing",
    "DropoutSite",
    "InjectionWeights",
    "Rule",
    "UpdateWeights",
    "boundary",
    "correct",
    "inject",
    "read",
    "unit",
    "update",
]
