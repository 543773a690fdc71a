"""GSM8K (Cobbe et al. 2021): grade-school word problems, solved in words; scored by the final number."""

import math
import re
from collections.abc import Callable, Sequence

from shadowpeft.compare.tasks.base import Item, Scores, Task
from shadowpeft.compare.tasks.scoring import mean, until_stop
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, loader, official, squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError

HUB = Hub("openai/gsm8k", {"train": "train", "test": "test"}, "main")
STOP = ("\nQuestion:",)
CALCULATOR = re.compile(r"<<[^<>]*>>")
# A minus between two numbers is a subtraction, not a sign.
NUMBER = re.compile(r"(?:(?<![0-9)])-\$?|\$-?)?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")


def final_number(text: str) -> float | None:
    """Return the number that a solution ends in: the first after the last `####`, or the text's last."""
    _, mark, final = text.rpartition("####")
    found = NUMBER.findall(text)[-1:]
    if mark:
        found = NUMBER.findall(final)[:1] or found
    if not found:
        return None
    return float(re.sub("[,$]", "", found[0]))


def word_problem(question: str) -> str:
    """Return the prompt of a word problem."""
    return f"Question: {question.strip()}\nAnswer:"


def exact_match(tolerance: float) -> Callable[[Sequence[Item], Sequence[str]], Scores]:
    """Return the metric of word problems.

    Args:
        tolerance: how far the final number may be off, for sets whose answers are fractions written as
            decimals.
    """

    def score(items: Sequence[Item], answers: Sequence[str]) -> Scores:
        numbers = [final_number(until_stop(answer, STOP)) for answer in answers]
        correct = [
            int(number is not None and math.isclose(number, item.target, rel_tol=0, abs_tol=tolerance))
            for item, number in zip(items, numbers, strict=True)
        ]
        return Scores(correct, {"exact_match": mean(correct)})

    return score


def _item(row: Row) -> Item:
    solution, mark, final = get(row, "answer", str).rpartition("####")
    number = final_number(final)
    if not mark or number is None:
        raise DataError(
            f"{row.where}: expected an answer that ends in '#### NUMBER', got {mark + final!r:.60}; "
            "add the number"
        )
    worked = CALCULATOR.sub("", solution).strip()
    return Item(word_problem(get(row, "question", str)), number, f" {worked}\n#### {final.strip()}")


def _read(source: RowSource) -> Items:
    rows = official("gsm8k", HUB, source, unit=lambda row: squeezed(get(row, "question", str)))
    return {split: [_item(row) for row in rows[split]] for split in rows}


TASK = Task(
    name="gsm8k",
    kind="generation",
    metric="exact_match",
    load=loader("gsm8k", _read),
    score=exact_match(tolerance=0.0),
    partners=("mawps",),
    max_length=512,
    max_new_tokens=256,
    stop=STOP,
)
