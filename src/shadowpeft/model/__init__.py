"""The shadowed model, as a transformers model: attach, forward, generate, several adapters, detach, unload.

May import `storage` and all below it. Everything that trains, measures or exports imports this.
"""

from shadowpeft.model.shadowed import ShadowedModel, attach

__all__ = ["ShadowedModel", "attach"]
