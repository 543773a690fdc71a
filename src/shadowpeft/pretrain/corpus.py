"""Plain text as a stream of documents: files, folders of files, data sets of the hub.

A row that cannot be used does not end the run. It is read as `Unusable`, and the reader counts it.
"""

import gzip
import json
import warnings
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shadowpeft.errors import DataError

# A text file is read in pieces of about this many bytes, cut at line ends: a tokenizer is slow on one string
# of gigabytes.
_PIECE = 1 << 16
# How many first rows are searched for the field that holds the text.
_CHECKED = 8
SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".parquet", ".npz")
_KINDS = f"a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, a folder of these, or a hub id"


class Document(NamedTuple):
    """One document, or a piece of one.

    Attributes:
        content: its text, or its token ids, to which nothing is added.
        begins: True if the document begins here.
        ends: True if it ends here.
    """

    content: str | np.ndarray
    begins: bool = True
    ends: bool = True


class Unusable(NamedTuple):
    """A row that holds no document.

    Attributes:
        kind: `empty` or `undecodable`.
        where: file and row, for messages.
    """

    kind: str
    where: str


class Format(NamedTuple):
    """A way to read the files of one suffix.

    Attributes:
        rows: yields the rows of a file unparsed, which is quick.
        parse: makes a document of one row. It raises ValueError, KeyError or TypeError if it cannot.
    """

    rows: Callable[[Path, str], Iterator[Any]]
    parse: Callable[[Any, str], Document]


class Corpus:
    """Documents of a source, in the same order each time.

    Args:
        source: a file, a folder of files (read in the order of their names, each to its end) or the id of a
            data set on the hub.
        field: the field of a row that holds its text.

    Raises:
        DataError: there is no such source, or nothing in it that can be read.
    """

    def __init__(self, source: str, field: str = "text") -> None:
        self.source, self.field = source, field
        self._paths = _paths(source)
        self._format_of = {path: _FORMATS[_suffix(path)] for path in self._paths}
        self._refuse_missing_field()

    @property
    def holds_tokens(self) -> bool:
        """True if some of it is token ids; each file of these is one document."""
        return any(_suffix(path) == ".npz" for path in self._paths)

    @property
    def has_fields(self) -> bool:
        """True if it has rows of named fields, one of which is the text. Rows of the hub always have."""
        return not self._paths or any(_suffix(path) not in (".txt", ".npz") for path in self._paths)

    def read(self, first: int = 0) -> Iterator[Document | Unusable]:
        """Read from the row of index `first` on. The rows before it are not parsed."""
        if not self._paths:
            yield from self._read_hub(first)
            return
        index = 0
        for path in self._paths:
            for number, raw in self._raw(path):
                index += 1
                if index > first:
                    yield self._parse(raw, path, number)

    def _raw(self, path: Path) -> Iterator[tuple[int, Any]]:
        number = 0
        try:
            for number, raw in enumerate(self._format_of[path].rows(path, self.field), start=1):
                yield number, raw
        except (OSError, EOFError, zlib.error) as error:  # the last two: a cut and a damaged .gz file
            warnings.warn(
                f"{path} cannot be read beyond row {number} ({error}); what follows in it is left out",
                stacklevel=2,
            )

    def _parse(self, raw: Any, path: Path, number: int) -> Document | Unusable:
        where = f"{path}:{number}"
        try:
            document = self._format_of[path].parse(raw, self.field)
        except (ValueError, KeyError, TypeError):
            return Unusable("undecodable", where)
        return _checked(document, where)

    def _read_hub(self, first: int) -> Iterator[Document | Unusable]:
        for number, row in enumerate(_hub(self.source).skip(first), start=first):
            where = f"{self.source}[{number}]"
            try:
                yield _checked(_of_text(row.get(self.field)), where)
            except TypeError:
                yield Unusable("undecodable", where)

    def _refuse_missing_field(self) -> None:
        """Refuse a source if none of its first rows has the field: then the name is wrong, and not a row.

        Files of the other formats need no check: a parquet file names its columns, the rest have no fields.
        """
        if self._paths and _suffix(self._paths[0]) not in (".jsonl", ".jsonl.gz"):
            return
        seen: dict[str, None] = {}  # a set that keeps the order
        for row in islice(self._rows_with_fields(), _CHECKED):
            if self.field in row:
                return
            seen.update(dict.fromkeys(row))
        if seen:
            raise DataError(
                f"{self.source}: the first rows have no field {self.field!r}, but {', '.join(seen)}; "
                "name it with text_field"
            )

    def _rows_with_fields(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the hub or of the first file; a row that is no JSON object has no fields."""
        if self._paths:
            yield from (_fields(raw) for _, raw in self._raw(self._paths[0]))
        else:
            yield from _hub(self.source).take(_CHECKED)


def _paths(source: str) -> list[Path]:
    """List the files of a source. There are none if it is of the hub."""
    path = Path(source)
    if path.is_dir():
        found = sorted(entry for entry in path.rglob("*") if entry.is_file() and _suffix(entry) in _FORMATS)
        if not found:
            raise DataError(
                f"{source}: this folder holds no text to train on; expected {', '.join(SUFFIXES)} files"
            )
        return found
    if path.is_file():
        if _suffix(path) not in _FORMATS:
            raise DataError(f"{source}: files of this kind are not read; give {_KINDS}")
        return [path]
    if source.endswith(SUFFIXES) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise DataError(f"{source}: there is no such file or folder; give {_KINDS}")
    return []


def _suffix(path: Path) -> str:
    return ".jsonl.gz" if path.name.endswith(".jsonl.gz") else path.suffix


def _checked(document: Document, where: str) -> Document | Unusable:
    content = document.content
    if not isinstance(content, str):
        return document
    try:
        content.encode()
    except UnicodeEncodeError:  # half a character: JSON can spell it, but no tokenizer can read it
        return Unusable("undecodable", where)
    if not content.strip():
        return Unusable("empty", where)
    return document


def _lines(path: Path, field: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def _unpacked_lines(path: Path, field: str) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        yield from file


def _fields(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except ValueError:
        row = None
    return row if isinstance(row, dict) else {}


def _parse_line(line: bytes, field: str) -> Document:
    if not line.strip():
        return Document("")
    return _of_text(json.loads(line.decode("utf-8-sig"))[field])


def _of_text(value: Any) -> Document:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    return Document(value or "")


def _pieces(path: Path, field: str) -> Iterator[tuple[bytes, bool, bool]]:
    with open(path, "rb") as file:
        # One piece is read ahead: only then is it known whether a piece is the last.
        piece, begins = b"".join(file.readlines(_PIECE)), True
        while piece:
            following = b"".join(file.readlines(_PIECE))
            yield piece, begins, not following
            piece, begins = following, False


def _parse_piece(piece: tuple[bytes, bool, bool], field: str) -> Document:
    return Document(piece[0].decode("utf-8-sig"), *piece[1:])


def _cells(path: Path, field: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading it needs the pyarrow library; pip install 'shadowpeft[train]'"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        if field not in file.schema_arrow.names:
            columns = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path}: there is no column {field!r}, but {columns}; name it with text_field")
        for batch in file.iter_batches(batch_size=64, columns=[field]):
            yield from batch.column(0)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: is damaged or not a parquet file ({error})") from error


def _parse_cell(cell: Any, field: str) -> Document:
    return _of_text(cell.as_py())


def _arrays(path: Path, field: str) -> Iterator[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            ids = file["ids"]
    except (KeyError, ValueError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: expected an array 'ids' of token ids in a .npz file ({error})") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids) or ids.min() < 0:
        raise DataError(
            f"{path}: 'ids' must be one row of whole numbers, 0 or more, got shape {ids.shape} of {ids.dtype}"
        )
    yield ids


def _parse_array(ids: np.ndarray, field: str) -> Document:
    return Document(ids)


def _hub(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source}: reading it needs the datasets library; pip install 'shadowpeft[train]'"
        ) from error
    try:
        return datasets.load_dataset(source, split="train", streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: the split 'train' of this hub id cannot be loaded: {' '.join(str(error).split())}"
        ) from error


_FORMATS = {
    ".jsonl": Format(_lines, _parse_line),
    ".jsonl.gz": Format(_unpacked_lines, _parse_line),
    ".txt": Format(_pieces, _parse_piece),
    ".parquet": Format(_cells, _parse_cell),
    ".npz": Format(_arrays, _parse_array),
}
