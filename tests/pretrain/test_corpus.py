"""Documents from every kind of source, and what is passed over in it."""

from pathlib import Path

import pyarrow
import pytest
from helpers.documents import TEXTS, as_lines, write_lines
from pyarrow import parquet

from shadowpeft.errors import DataError
from shadowpeft.pretrain import corpus
from shadowpeft.pretrain.corpus import Corpus, Document, Unusable


def texts_of(source: Path, first: int = 0, **settings) -> list[str]:
    return [
        found.content for found in Corpus(str(source), **settings).read(first) if isinstance(found, Document)
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_of_json(tmp_path, name):
    """Catches a suffix that is not read, another field taken, and a start that is one row off."""
    path = write_lines(tmp_path / name, as_lines(TEXTS, "body"))
    assert texts_of(path, field="body") == TEXTS
    assert texts_of(path, first=3, field="body") == TEXTS[3:]


def test_parquet(tmp_path):
    """Catches cells not turned into text, nulls taken for damage, and a start that is one row off."""
    parquet.write_table(
        pyarrow.table({"text": [*TEXTS, None], "id": list(range(6))}), tmp_path / "rows.parquet"
    )
    assert texts_of(tmp_path / "rows.parquet", first=1) == TEXTS[1:]
    assert [found.kind for found in Corpus(str(tmp_path)).read() if isinstance(found, Unusable)] == ["empty"]


def test_text_file_is_one_document_in_pieces(tmp_path, monkeypatch):
    """Catches text lost or doubled between pieces, and pieces that each begin or end the document."""
    monkeypatch.setattr(corpus, "_PIECE", 5)
    content = "one line\nand another\n\nthe last, without an end"
    (tmp_path / "book.txt").write_text(content, encoding="utf-8")
    found = list(Corpus(str(tmp_path / "book.txt")).read())
    assert "".join(piece.content for piece in found) == content
    assert [piece.begins for piece in found] == [True] + [False] * (len(found) - 1)
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 2


def test_folder_is_read_in_the_order_of_names(tmp_path):
    """Catches an order that depends on the machine, other files taken for text, and a forgotten file."""
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "1.jsonl", as_lines(TEXTS[3:]))
    write_lines(tmp_path / "a.jsonl", as_lines(TEXTS[:3]))
    (tmp_path / "README.md").write_text("not text to train on", encoding="utf-8")
    assert texts_of(tmp_path) == TEXTS
    assert texts_of(tmp_path, first=4) == TEXTS[4:]


def test_hub_id_is_streamed(monkeypatch):
    """Catches a data set that is downloaded whole, read from another split, or started in the wrong place."""
    import datasets

    asked = {}

    def load(name: str, split: str, streaming: bool) -> datasets.IterableDataset:
        asked.update(name=name, split=split, streaming=streaming)
        return datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in [*TEXTS, None, 7]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = list(Corpus("someone/words").read(2))
    assert asked == {"name": "someone/words", "split": "train", "streaming": True}
    assert [each.content for each in found[:3]] == TEXTS[2:]
    assert [each.kind for each in found[3:]] == ["empty", "undecodable"]


def test_bad_rows_are_told_and_passed_over(tmp_path):
    """Catches a bad row that ends the run, that is taken for text, or that is not told by file and row."""
    good = as_lines(["good"])
    bad = [
        b"",
        b'{"text": "  "}',
        b'{"text": null}',
        b'{"text": "\xff"}',
        b"{",
        b"[1]",
        b'{"text": 3}',
        b'{"other": "x"}',
        rb'{"text": "\ud800"}',
    ]
    path = write_lines(tmp_path / "rows.jsonl", [*good, *bad, *good])
    found = list(Corpus(str(path)).read())
    assert [each.content for each in found if isinstance(each, Document)] == ["good", "good"]
    told = [each for each in found if isinstance(each, Unusable)]
    assert [each.kind for each in told] == ["empty"] * 3 + ["undecodable"] * 6
    assert told[0].where == f"{path}:2"


def test_cut_file_is_told_and_the_next_one_read(tmp_path):
    """Catches a damaged .gz file that ends the run, or that is left out in silence."""
    path = write_lines(
        tmp_path / "a.jsonl.gz", as_lines([f"text {number} {number * 7919}" for number in range(5000)])
    )
    path.write_bytes(path.read_bytes()[:-2000])
    write_lines(tmp_path / "b.jsonl", as_lines(["after it"]))
    with pytest.warns(UserWarning, match=r"a\.jsonl\.gz cannot be read beyond row"):
        found = texts_of(tmp_path)
    assert found[0] == "text 0 0"
    assert found[-1] == "after it"
    assert len(found) > 1000


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.jsonl", None, "no such file"),
        ("rows.csv", b"a,b", "files of this kind are not read"),
        ("folder", {}, "holds no text"),
        ("rows.jsonl", b'{"body": "x", "id": 1}\n', "no field 'text', but body, id; name it with text_field"),
        ("rows.parquet", b"PAR1 not really", "damaged or not a parquet file"),
        ("rows.npz", b"no", "array 'ids'"),
    ],
    ids=["missing", "kind", "empty folder", "field", "parquet", "npz"],
)
def test_sources_that_cannot_be_read_are_refused(tmp_path, name, content, told):
    """Catches a wrong path, kind or field that is found late, or refused without saying what to do."""
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        list(Corpus(str(path)).read())
