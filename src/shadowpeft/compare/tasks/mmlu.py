"""MMLU (Hendrycks et al. 2021): questions on 57 subjects, answered by the likeliest of four letters."""

from collections.abc import Sequence

from shadowpeft.compare.tasks.base import Item, Scores, Task
from shadowpeft.compare.tasks.scoring import accuracy, by_group, mean
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, Rows, cut, loader, squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError

HUB = Hub("cais/mmlu", {split: split for split in ("auxiliary_train", "dev", "validation", "test")}, "all")
LETTERS = "ABCDEFGH"
# The share of the validation split that stays, if the rest has to serve for training.
LOCAL_VALIDATION_SHARE = 1 / 3


def choice_item(row: Row, question: str, choices: Sequence[str], answer: int, subject: str = "") -> Item:
    """Return the item of a question with lettered choices.

    Args:
        row: where it comes from, for messages.
        question: the question.
        choices: the texts to choose from.
        answer: index of the right one.
        subject: what the question is about; empty if it is not known.

    Raises:
        DataError: there are too few or too many choices, or the answer is none of them.
    """
    if not 2 <= len(choices) <= len(LETTERS) or not 0 <= answer < len(choices):
        raise DataError(
            f"{row.where}: expected 2 to {len(LETTERS)} choices and the index of one, "
            f"got {len(choices)} and {answer}; fix the row"
        )
    about = f" about {subject.replace('_', ' ')}" if subject else ""
    lines = [f"{letter}. {str(choice).strip()}" for letter, choice in zip(LETTERS, choices, strict=False)]
    prompt = "\n".join(
        [
            f"The following are multiple choice questions (with answers){about}.\n",
            question.strip(),
            *lines,
            "Answer:",
        ]
    )
    letters = tuple(f" {letter}" for letter in LETTERS[: len(choices)])
    return Item(prompt, answer, letters[answer], subject, letters)


def without_header(item: Item) -> str:
    """Return the question and its choices alone, since the same ones occur under several subjects."""
    return item.prompt.partition("\n\n")[2]


def score(items: Sequence[Item], answers: Sequence[int]) -> Scores:
    """Score by the share of right answers over all questions, and by its mean over subjects."""
    scores = accuracy(items, answers)
    macro = mean(list(by_group(items, scores.correct).values()))
    return Scores(scores.correct, {**scores.metrics, "accuracy_macro": macro})


def _flat(row: Row) -> Row:
    # One version of auxiliary_train on the hub nests its rows.
    nested = row.fields.get("train")
    if isinstance(nested, dict):
        return Row(nested, row.where)
    return row


def _item(row: Row) -> Item:
    return choice_item(
        row,
        get(row, "question", str),
        get(row, "choices", list),
        answer=get(row, "answer", int),
        subject=row.fields.get("subject") or "",
    )


def _rows(source: RowSource) -> Rows:
    validation = source.rows("mmlu", "validation", HUB)
    if source.has("mmlu", "auxiliary_train", HUB):
        train = [_flat(row) for row in source.rows("mmlu", "auxiliary_train", HUB)]
    else:
        rest, validation = cut(
            "mmlu",
            validation,
            unit=lambda row: squeezed(get(row, "question", str)),
            stratum=lambda row: get(row, "subject", str),
            share=LOCAL_VALIDATION_SHARE,
        )
        train = rest + source.rows("mmlu", "dev", HUB)
    return {"train": train, "validation": validation, "test": source.rows("mmlu", "test", HUB)}


def _read(source: RowSource) -> Items:
    rows = _rows(source)
    return {split: [_item(row) for row in rows[split]] for split in rows}


TASK = Task(
    name="mmlu",
    kind="choice",
    metric="accuracy",
    load=loader("mmlu", _read, same=without_header),
    score=score,
    partners=("arc_easy", "arc_challenge"),
    max_length=512,
)
