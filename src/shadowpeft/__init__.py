"""Adapt a frozen language model with a shadow network, and use what was trained attached or detached."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shadowpeft.config import ShadowConfig
    from shadowpeft.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError, UserError
    from shadowpeft.model import ShadowedModel, attach
    from shadowpeft.trainer import ShadowTrainer

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ShadowConfig",
    "ShadowTrainer",
    "ShadowedModel",
    "UnsupportedModelError",
    "UserError",
    "attach",
]

# Where each public name lives. Resolved on first use, so that `shadowpeft --help` does not wait for torch.
_HOMES = {
    "ShadowConfig": "config",
    "ShadowTrainer": "trainer",
    "ShadowedModel": "model",
    "attach": "model",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
