"""The three operations of the method. `reference` is the spec; every faster implementation is compared with it."""

from shadowpeft.ops.reference import DropoutSite, InjectionWeights, UpdateWeights, boundary, inject, update

__all__ = ["DropoutSite", "InjectionWeights", "UpdateWeights", "boundary", "inject", "update"]
