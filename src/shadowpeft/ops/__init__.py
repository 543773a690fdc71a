"""The three operations of the method. `reference` is the spec; every faster implementation is compared with it."""

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
