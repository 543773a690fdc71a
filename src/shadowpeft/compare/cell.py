"""One cell of a study: one model trained one way on one task from one seed."""

from dataclasses import dataclass
from typing import Literal

Stage = Literal["search", "final", "cost"]


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
    """

    stage: Stage
    model: str
    task: str
    method: str
    rank: int
    seed: int
    learning_rate: float
    alpha: float | None = None

    @property
    def key(self) -> str:
        """Name the cell in one line; equal keys are equal work."""
        alpha = "" if self.alpha is None else f" alpha={self.alpha:g}"
        return f"{self.stage} {self.model} {self.task} {self.method} rank={self.rank} seed={self.seed} lr={self.learning_rate:g}{alpha}"
