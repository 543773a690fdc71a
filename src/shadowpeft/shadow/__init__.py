"""What is trained: the shadow network, the boundary weights of each block, and the adapter that holds both.

Here is also where the settings that a user left open get their values. May import `ops`, `decoder` and all
below them; reads a base model and never keeps one.
"""

from shadowpeft.shadow.network import Shadow, explicit, explicit_from_config, implicit, place

__all__ = ["Shadow", "explicit", "explicit_from_config", "implicit", "place"]
