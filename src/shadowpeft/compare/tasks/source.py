"""Where the rows of a task come from: a local folder, or the hub."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shadowpeft.data.rows import Row, read_rows
from shadowpeft.errors import DataError

T = TypeVar("T")
SUFFIXES = (".jsonl", ".jsonl.gz")
SHORTEST_TEXT = 200  # characters; shorter texts are headings and stubs


@dataclass(frozen=True)
class Hub:
    """A data set on the hub.

    Attributes:
        path: its id.
        splits: name of the split here -> its name there; a split that is not listed does not exist there.
        config: name of its configuration, if it has several.
        options: further arguments of `datasets.load_dataset`.
    """

    path: str
    splits: Mapping[str, str]
    config: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


WIKITEXT = Hub("Salesforce/wikitext", {"validation": "validation"}, "wikitext-2-raw-v1")


class RowSource:
    """Rows of all tasks, read at most once.

    Args:
        data_dir: folder with one folder a data set, in it `SPLIT.jsonl` or `SPLIT.jsonl.gz`; `None` for the
            hub.
    """

    def __init__(self, data_dir: str | None = None):
        self.data_dir = data_dir
        self._kept: dict[Hashable, Any] = {}

    def has(self, name: str, split: str, hub: Hub) -> bool:
        """Return whether the folder has the split, or the hub is known to have it."""
        if self.data_dir is None:
            return split in hub.splits
        return self._file(self.data_dir, name, split) is not None

    def rows(self, name: str, split: str, hub: Hub) -> list[Row]:
        """Read one split.

        Args:
            name: name of the data set's folder.
            split: name of its file, without the ending.
            hub: where the same rows are on the hub.

        Raises:
            DataError: the folder, the split or the hub is missing, or a file is damaged.
        """
        if self.data_dir is None:
            return self.once((hub.path, hub.config, split), lambda: _read_hub(name, split, hub))
        path = self._file(self.data_dir, name, split)
        if path is None:
            raise DataError(_missing(Path(self.data_dir), name, split))
        return self.once(path, lambda: read_rows(str(path)))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made under this key before, or make it."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @staticmethod
    def _file(data_dir: str, name: str, split: str) -> Path | None:
        candidates = [Path(data_dir) / name / f"{split}{suffix}" for suffix in SUFFIXES]
        return next((path for path in candidates if path.is_file()), None)


def held_out_text(source: RowSource, count: int) -> list[str]:
    """Return plain English texts that no task trains on.

    They are `wiki_en` of the folder, or the validation split of WikiText-2 on the hub.

    Args:
        source: where to read.
        count: the most texts to return; always the first ones.

    Raises:
        DataError: they cannot be read, or none is long enough.
    """
    texts = [get(row, "text", str).strip() for row in source.rows("wiki_en", "validation", WIKITEXT)]
    long_enough = [text for text in texts if len(text) >= SHORTEST_TEXT]
    if not long_enough:
        raise DataError(
            f"wiki_en: expected texts of at least {SHORTEST_TEXT} characters to measure forgetting on, "
            "got none; add longer ones"
        )
    return long_enough[:count]


def get(row: Row, name: str, *kinds: type) -> Any:
    """Return a field of a row.

    Raises:
        DataError: there is no such field, or it is of none of the kinds.
    """
    value = row.fields.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected, got = " or ".join(kind.__name__ for kind in kinds), "no such field"
        if name in row.fields:
            got = f"{type(value).__name__} {value!r:.60}"
        raise DataError(
            f"{row.where}: expected {name!r} to be {expected}, got {got}; "
            f"the fields are {', '.join(row.fields)}"
        )
    return value


def _missing(data_dir: Path, name: str, split: str) -> str:
    if not data_dir.is_dir():
        return (
            f"there is no data folder {data_dir}; give --data-dir a folder with one folder a data set, "
            f"such as {data_dir / name}"
        )
    folder = data_dir / name
    if not folder.is_dir():
        there = ", ".join(sorted(path.name for path in data_dir.iterdir() if path.is_dir())) or "no folder"
        return (
            f"the data folder {data_dir} has no set {name!r}, only {there}; "
            f"add {folder / f'{split}.jsonl'} or leave --data-dir out"
        )
    there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    return (
        f"the data folder {folder} has no split {split!r} ({split}.jsonl or {split}.jsonl.gz), only {there}; "
        "add it or leave --data-dir out"
    )


def _read_hub(name: str, split: str, hub: Hub) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "reading a task from the hub needs the datasets library; pip install 'shadowpeft[train]'"
        ) from error
    try:
        dataset = datasets.load_dataset(hub.path, hub.config, split=hub.splits[split], **hub.options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"the data set {hub.path} cannot be loaded from the hub ({' '.join(str(error).split()):.200}); "
            f"connect to it, or pass --data-dir with a folder that holds {name}/{split}.jsonl"
        ) from error
    # The hub numbers the classes in an order of its own; their names are the same as in a folder.
    named = {
        column: feature
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    where, rows = f"{hub.path}[{hub.splits[split]!r}]", []
    for index, fields in enumerate(dataset):
        names = {column: feature.int2str(fields[column]) for column, feature in named.items()}
        rows.append(Row({**fields, **names}, f"{where}[{index}]"))
    return rows
