"""One cell of a study: one model trained with one method on one task from one seed."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Stage = Literal["search", "final", "cost"]


class Setting(NamedTuple):
    """Settings that a search tries and chooses among.

    Attributes:
        learning_rate: peak learning rate; 0 where nothing was searched or chosen.
        alpha: strength of the injection for the shadows; `None` for other methods.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for
            `learning_rate`.
        head_learning_rate: peak learning rate of a classifier's new heads; `None` for `learning_rate`.
    """

    learning_rate: float
    alpha: float | None = None
    backbone_learning_rate: float | None = None
    head_learning_rate: float | None = None


@dataclass(frozen=True)
class Cell:
    """One training run, and where its model is measured.

    Attributes:
        stage: `search` measures on the validation split, `final` reads the test split, `cost` times training
            and answering with nothing else on the device.
        model: folder or hub id of the base.
        task: name of the task it is trained on.
        method: name of the method.
        rank: LoRA rank whose number of trainable parameters is the budget of every method.
        seed: decides initial weights, order and dropout.
        learning_rate: peak learning rate; 0 for the untuned base.
        alpha: strength of the injection for the shadows; `None` for other methods.
        backbone_learning_rate: peak learning rate of the shadow's backbone and projection; `None` for
            `learning_rate`.
        head_learning_rate: peak learning rate of a classifier's new heads; `None` for `learning_rate`.
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
    head_learning_rate: float | None = None

    @property
    def setting(self) -> Setting:
        """The setting that the search tried or chose for the cell."""
        return Setting(self.learning_rate, self.alpha, self.backbone_learning_rate, self.head_learning_rate)

    @property
    def key(self) -> str:
        """The cell in one line; equal keys are equal work."""
        words = [self.stage, self.model, self.task, self.method, f"rank={self.rank}", f"seed={self.seed}"]
        words.append(f"lr={self.learning_rate:g}")
        if self.alpha is not None:
            words.append(f"alpha={self.alpha:g}")
        # Only if they are set: studies from before there were such rates keep their keys.
        if self.backbone_learning_rate is not None:
            words.append(f"backbone_lr={self.backbone_learning_rate:g}")
        if self.head_learning_rate is not None:
            words.append(f"head_lr={self.head_learning_rate:g}")
        return " ".join(words)
