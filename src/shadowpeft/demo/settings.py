"""The demo's settings, chosen on the validation split alone by the search in `recipes/demo_settings`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What both methods share: rows, order, batch and epochs.

    Few epochs in small batches: many steps for few rows, since the rows are what takes the time.
    """

    epochs: float = 0.6
    batch: int = 8
    seed: int = 0
    test_rows: int = 300
    timed_answers: int = 20


@dataclass(frozen=True)
class Lora:
    """LoRA on all linear layers."""

    rank: int = 8
    learning_rate: float = 4e-3


@dataclass(frozen=True)
class Shadow:
    """A shadow: of one random block, or pretrained."""

    rank: int = 64
    alpha: float = 4.0
    loss_weight: float = 1.0
    dropout: float = 0.05
    learning_rate: float = 1e-3


LORA, SHADOW = Lora(), Shadow()
PRETRAINED_SHADOW = Shadow()
