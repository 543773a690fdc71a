"""MAWPS (Koncel-Kedziorski et al. 2016): short word problems, answered by a number without a solution."""

from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.compare.tasks.gsm8k import STOP, exact_match, word_problem
from shadowpeft.compare.tasks.source import Hub, RowSource, get
from shadowpeft.compare.tasks.splits import Items, loader, official, squeezed
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError

HUB = Hub("MU-NLPC/Calc-mawps", {"train": "train", "validation": "validation", "test": "test"})
TOLERANCE = 1e-4


def _item(row: Row) -> Item:
    field = "result_float" if "result_float" in row.fields else "answer"
    given = get(row, field, float, int, str)
    try:
        number = float(given)
    except ValueError:
        raise DataError(
            f"{row.where}: expected a number for an answer, got {given!r}; fix or drop the row"
        ) from None
    written = f"{number:.4f}".rstrip("0").rstrip(".")
    return Item(word_problem(get(row, "question", str)), number, f" #### {written}")


def _read(source: RowSource) -> Items:
    rows = official("mawps", HUB, source, unit=lambda row: squeezed(get(row, "question", str)))
    return {split: [_item(row) for row in rows[split]] for split in rows}


TASK = Task(
    name="mawps",
    kind="generation",
    metric="exact_match",
    load=loader("mawps", _read),
    score=exact_match(TOLERANCE),
    max_length=512,
    max_new_tokens=256,
    stop=STOP,
)
