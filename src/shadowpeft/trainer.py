"""The public home of `ShadowTrainer`: `from shadowpeft.trainer import ShadowTrainer`."""

from shadowpeft.train.trainer import ShadowTrainer

__all__ = ["ShadowTrainer"]
