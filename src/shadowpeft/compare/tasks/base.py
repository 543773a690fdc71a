"""What a task is: its items, how an answer is scored, and where its rows come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from shadowpeft.compare.tasks.source import RowSource

Kind = Literal["classification", "generation", "choice"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
        prompt: what the model reads: the text to classify, or the prompt to continue.
        answer: what training teaches after the prompt, with its leading space; empty for a classification
            task.
        target: what an answer is scored against: the index of the class or choice, or, for generation, the
            value that the metric compares with.
        group: what the metrics are reported by, such as a subject, "answerable" or "out-of-scope"; empty
            for none.
        choices: for a choice task the continuations whose likelihoods are compared, each with its leading
            space.
    """

    prompt: str
    target: Any
    answer: str = ""
    group: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """The scores of a model's answers.

    Attributes:
        correct: 1 or 0 for every item by the task's primary metric, for paired comparisons.
        metrics: all metrics of the task, the primary one among them, as shares between 0 and 1.
    """

    correct: list[int]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Task:
    """A task: how it is loaded, answered and scored.

    Attributes:
        name: the name that users give.
        kind: `classification` trains a head and answers by its largest logit; `generation` answers by greedy
            generation; `choice` answers by the likeliest of an item's choices.
        metric: name of the primary metric, a key of `Scores.metrics`.
        load: returns the items of a split.
        score: scores the answers of a model to items: an index each for classification and choice, a text
            each for generation.
        labels: classes of a classification task, in order.
        partners: tasks that a model trained on this one is also tested on, out of distribution.
        max_length: tokens that an item may have in training, its answer included; a longer text to classify
            is cut, a longer item of another kind left out of training.
        max_new_tokens: tokens of a generated answer.
        stop: texts at which a generated answer ends.
    """

    name: str
    kind: Kind
    metric: str
    load: "Callable[[Split, RowSource], list[Item]]"
    score: Callable[[Sequence[Item], Sequence[Any]], Scores]
    labels: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    max_length: int = 512
    max_new_tokens: int = 0
    stop: tuple[str, ...] = field(default=())
