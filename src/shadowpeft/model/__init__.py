"""The shadowed model: attach, forward, generate, several adapters, detach and unload, as transformers expects of a model.

Imports `storage` and all below it; everything that trains, measures or exports imports this.
"""

from shadowpeft.model.shadowed import ShadowedModel, attach

__all__ = ["ShadowedModel", "attach"]
