"""The public home of `ShadowTrainer`; `from shadowpeft import ShadowTrainer` finds it here on first use."""

from shadowpeft.train.trainer import ShadowTrainer

__all__ = ["ShadowTrainer"]
