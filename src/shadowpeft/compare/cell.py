"""One cell of a study: one model trained one way on one task from one seed."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Stage = Literal["search", "final", "cost"]


class Setting(NamedTuple):
    """What a search tries, and what it chooses.

    Attributes:
        learning_rate: peak learning rate; 0 where nothing was searched or chosen.
        alpha: strength of the injection for the shadows; `None` for other methods.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for `learning_rate`.
    """

    learning_rate: float
    alpha: float | None = None
    backbone_learning_rate: float | None = None


@dataclass(frozen=True)
class Cell:
    """What is trained and where it is measured.

    Attributes:
        stage: `search` measures on the validation split, `final` reads the test split, `cost` times training and answering alone.
        model: folder or hub id of the base.
        task: name of the task it is trained on.
        method: name of the method.
        rank: LoRA rank whose number of trainable parameters is the budget of every method.
        seed: decides initial weights, order and dropout.
        learning_rate: peak learning rate; 0 for the untuned base.
        alpha: strength of the injection for the shadows; `None` for other methods.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for `learning_rate`.
    """

    stage: Stage
    model: str
    task: str
    method: str
    rank: int
    seed: int
    learning_rate: float
    alpha: float | None = None
    backbone_learning_rate: float | None = None

    @property
    def setting(self) -> Setting:
        """What the search tried or chose for the cell."""
        return Setting(self.learning_rate, self.alpha, self.backbone_learning_rate)

    @property
    def key(self) -> str:
        """Name the cell in one line; equal keys are equal work."""
        alpha = "" if self.alpha is None else f" alpha={self.alpha:g}"
        # Named only where it is set, so that the keys of studies from before there was such a rate are what they were.
        backbone = (
            "" if self.backbone_learning_rate is None else f" backbone_lr={self.backbone_learning_rate:g}"
        )
        rates = f"lr={self.learning_rate:g}{alpha}{backbone}"
        return (
            f"{self.stage} {self.model} {self.task} {self.method} rank={self.rank} seed={self.seed} {rates}"
        )
