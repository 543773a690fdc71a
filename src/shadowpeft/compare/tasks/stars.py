"""Stars of a text: Amazon reviews in five classes, and the five sentiments of SST (Socher et al. 2013) as their partner."""

from collections.abc import Callable

from shadowpeft.compare.tasks.base import Split, Task
from shadowpeft.compare.tasks.scoring import accuracy
from shadowpeft.compare.tasks.source import Hub, Source, get
from shadowpeft.compare.tasks.splits import Items, Labelled, classified, loader, official, squeezed
from shadowpeft.data.rows import Row

LABELS = ("1", "2", "3", "4", "5")
ALL: tuple[Split, ...] = ("train", "validation", "test")
AMAZON = Hub("SetFit/amazon_reviews_multi_en", {split: split for split in ALL})
SST = Hub("SetFit/sst5", {split: split for split in ALL})


def _text(row: Row) -> str:
    body = get(row, "text", str).strip()
    title = (row.fields.get("title") or "").strip()
    return f"{title}. {body}" if title else body


def _stars(row: Row) -> str:
    if "stars" in row.fields:
        return str(get(row, "stars", int))
    label = get(row, "label", int)
    return str(
        label + 1 if "label_text" in row.fields else label
    )  # the hub's rows count from 0, and name each label


def _reader(name: str, hub: Hub) -> Callable[[Source], Items]:
    def read(source: Source) -> Items:
        rows = official(name, hub, source, unit=lambda row: squeezed(_text(row)), stratum=_stars)
        texts: dict[Split, list[Labelled]] = {
            split: [(_text(row), _stars(row)) for row in rows[split] if _text(row)] for split in rows
        }
        return classified(name, LABELS, texts)

    return read


AMAZON_TASK = Task(
    name="amazon5",
    kind="classification",
    metric="accuracy",
    load=loader("amazon5", _reader("amazon5", AMAZON)),
    score=accuracy,
    labels=LABELS,
    partners=("sst5",),
    max_length=256,
)
SST_TASK = Task(
    name="sst5",
    kind="classification",
    metric="accuracy",
    load=loader("sst5", _reader("sst5", SST)),
    score=accuracy,
    labels=LABELS,
    max_length=128,
)
