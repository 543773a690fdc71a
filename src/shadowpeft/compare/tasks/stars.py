"""The stars of a text: Amazon reviews, and their partner, the five classes of SST (Socher et al. 2013)."""

from collections.abc import Callable

from shadowpeft.compare.tasks.base import Split, Task
from shadowpeft.compare.tasks.scoring import accuracy
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, Labelled, classified, loader, official, squeezed
from shadowpeft.data.rows import Row

LABELS = ("1", "2", "3", "4", "5")
ALL: tuple[Split, ...] = ("train", "validation", "test")
AMAZON = Hub("SetFit/amazon_reviews_multi_en", {split: split for split in ALL})
SST = Hub("SetFit/sst5", {split: split for split in ALL})


def _text(row: Row) -> str:
    body = get(row, "text", str).strip()
    title = (row.fields.get("title") or "").strip()
    if title:
        return f"{title}. {body}"
    return body


def _stars(row: Row) -> str:
    if "stars" in row.fields:
        return str(get(row, "stars", int))
    label = get(row, "label", int)
    # The rows of the hub name each label, and count them from 0.
    is_from_hub = "label_text" in row.fields
    return str(label + is_from_hub)


def _reader(name: str, hub: Hub) -> Callable[[RowSource], Items]:
    def read(source: RowSource) -> Items:
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
