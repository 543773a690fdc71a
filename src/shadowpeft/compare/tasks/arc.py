"""ARC (Clark et al. 2018): science questions with three to five choices, asked as MMLU's are."""

from collections.abc import Callable

from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.compare.tasks.mmlu import choice_item, without_header
from shadowpeft.compare.tasks.scoring import accuracy
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, loader, official, squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError


def _item(row: Row) -> Item:
    choices = get(row, "choices", list, dict)
    if isinstance(choices, list):
        return choice_item(row, get(row, "question", str), choices, answer=get(row, "answer", int))
    texts, labels, key = choices["text"], choices["label"], get(row, "answerKey", str)
    if key not in labels:
        raise DataError(
            f"{row.where}: expected the answer to be one of {', '.join(labels)}, got {key!r}; "
            "fix or drop the row"
        )
    return choice_item(row, get(row, "question", str), texts, answer=labels.index(key))


def _reader(name: str, config: str) -> Callable[[RowSource], Items]:
    hub = Hub("allenai/ai2_arc", {"train": "train", "validation": "validation", "test": "test"}, config)

    def read(source: RowSource) -> Items:
        rows = official(name, hub, source, unit=lambda row: squeezed(get(row, "question", str)))
        return {split: [_item(row) for row in rows[split]] for split in rows}

    return read


def _task(name: str, config: str) -> Task:
    load = loader(name, _reader(name, config), same=without_header)
    return Task(name, kind="choice", metric="accuracy", load=load, score=accuracy, max_length=512)


EASY = _task("arc_easy", "ARC-Easy")
CHALLENGE = _task("arc_challenge", "ARC-Challenge")
