"""The training run of `shadowpeft train`: its settings, its folder, transformers' Trainer and its callbacks.

It may import `evaluation` and all below it; `pretrain`, `compare` and `bench` train with parts of it.
Importing this package does not import torch, so that a mistake is reported without waiting for it.
"""

from shadowpeft.train.config import TrainConfig
from shadowpeft.train.result import TrainResult
from shadowpeft.train.run import train

__all__ = ["TrainConfig", "TrainResult", "train"]
