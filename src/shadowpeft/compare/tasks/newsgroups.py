"""20 Newsgroups (Lang 1995), split by date: which group a post was sent to.

Headers, footers and quotes are removed by scikit-learn's rules, as they give the group away. What is then
empty is dropped: of the official splits 300 of 11,314 training posts and 215 of 7,532 test posts.
"""

from shadowpeft.compare.tasks.base import Split, Task
from shadowpeft.compare.tasks.scoring import accuracy
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, Labelled, classified, loader, official, squeezed
from shadowpeft.data.rows import Row

HUB = Hub("SetFit/20_newsgroups", {"train": "train", "test": "test"})
LABELS = (
    *(
        "alt.atheism",
        "comp.graphics",
        "comp.os.ms-windows.misc",
        "comp.sys.ibm.pc.hardware",
        "comp.sys.mac.hardware",
    ),
    *(
        "comp.windows.x",
        "misc.forsale",
        "rec.autos",
        "rec.motorcycles",
        "rec.sport.baseball",
        "rec.sport.hockey",
    ),
    *("sci.crypt", "sci.electronics", "sci.med", "sci.space", "soc.religion.christian"),
    *("talk.politics.guns", "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc"),
)


def _text(row: Row) -> str:
    field = "text_stripped" if "text_stripped" in row.fields else "text"
    return get(row, field, str).strip()


def _group(row: Row) -> str:
    field = "group" if "group" in row.fields else "label_text"
    return get(row, field, str)


def _read(source: RowSource) -> Items:
    rows = official("newsgroups20", HUB, source, unit=lambda row: squeezed(_text(row)), stratum=_group)
    texts: dict[Split, list[Labelled]] = {
        split: [(_text(row), _group(row)) for row in rows[split] if _text(row)] for split in rows
    }
    return classified("newsgroups20", LABELS, texts)


TASK = Task(
    name="newsgroups20",
    kind="classification",
    metric="accuracy",
    load=loader("newsgroups20", _read),
    score=accuracy,
    labels=LABELS,
    max_length=512,
)
