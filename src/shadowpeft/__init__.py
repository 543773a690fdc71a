"""Adapt a frozen language model with a shadow network, and use what was trained attached or detached."""

__version__ = "0.1.0"

from shadowpeft.config import ShadowConfig
from shadowpeft.errors import CheckpointError, ConfigError, DataError, UnsupportedModelError, UserError
from shadowpeft.model import ShadowedModel, attach

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ShadowConfig",
    "ShadowedModel",
    "UnsupportedModelError",
    "UserError",
    "attach",
]
