"""The training run behind `shadowpeft train`: its settings, its folder, transformers' Trainer and its callbacks.

Imports `evaluation` and all below it. Importing this package does not import torch, so that a mistake is told at once.
"""

from shadowpeft.train.config import TrainConfig
from shadowpeft.train.run import TrainResult, train

__all__ = ["TrainConfig", "TrainResult", "train"]
