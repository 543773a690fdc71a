"""Rows: every way to read them, to split them and to get them wrong."""

import gzip
import sys

import pytest
from helpers.rows import ANSWER, BAD_ROWS, USER, row

from shadowpeft.data.rows import Row, read_rows, reference_answer, split_rows, unused_columns
from shadowpeft.errors import DataError

# Reading


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_files_are_read_with_their_line_numbers(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    content = (
        '\ufeff{"text": "é\u2028"}\r\n\n   \n{"text": "b"}'.encode()
    )  # a byte-order mark, blank lines, no last line break
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert read_rows(str(path)) == [Row({"text": "é\u2028"}, f"{path}:1"), Row({"text": "b"}, f"{path}:4")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "data.jsonl:3: expected one JSON object in UTF-8, got a line that does not parse"),
        (b'{"text": "\xff"}', "data.jsonl:3: expected one JSON object in UTF-8"),
        (b'["text"]', "data.jsonl:3: expected a JSON object, got list"),
        (b"null", "data.jsonl:3: expected a JSON object, got null"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(DataError, match=message):
        read_rows(str(path))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"data.jsonl: expected at least one row, got none"):
        read_rows(str(path))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone.jsonl: no such file"):
        read_rows(str(tmp_path / "gone.jsonl"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text\na\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"data.csv: expected a .jsonl or .jsonl.gz file"):
        read_rows(str(path))


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-12], lambda content: b"no gzip", lambda c: c[:12] + b"\xff\xff" + c[14:]],
)
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b'{"text": "abcdefgh"}\n' * 50)))
    with pytest.raises(DataError, match=r"data.jsonl.gz: cannot be read beyond line"):
        read_rows(str(path))


def test_a_dataset_folder_is_read_by_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-8")
    (folder / "test.jsonl").write_text('{"text": "c"}\n', encoding="utf-8")
    assert read_rows(str(folder), "test") == [Row({"text": "c"}, f"{folder}['test'][0]")]
    assert [r.fields["text"] for r in read_rows(str(folder))] == ["a", "b"]
    with pytest.raises(DataError, match=r"folder: split 'dev' of this data set"):
        read_rows(str(folder), "dev")


@pytest.mark.parametrize(
    "error", [ConnectionError("offline"), FileNotFoundError("none"), ValueError("config name is missing")]
)
def test_a_hub_data_set_that_cannot_be_loaded_is_refused(monkeypatch, error):
    datasets = pytest.importorskip("datasets")

    def fail(source: str, split: str) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError,
        match=f"some/name: split 'train' of this data set folder or hub id cannot be loaded: {error}",
    ):
        read_rows("some/name")


def test_a_hub_data_set_without_rows_is_refused(monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda source, split: [])
    with pytest.raises(DataError, match=r"some/name: expected at least one row"):
        read_rows("some/name")


def test_a_hub_data_set_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'shadowpeft\[train\]'"):
        read_rows("some/name")


# Splitting


def test_a_split_parts_the_rows_and_depends_on_the_seed_alone():
    rows = [row(where=str(i), text="a") for i in range(40)]
    train, held_out = split_rows(rows, 0.25, seed=1)
    assert (len(train), len(held_out)) == (30, 10)
    for part in (train, held_out):
        assert [r.where for r in part] == sorted((r.where for r in part), key=int)
    assert {r.where for r in train} | {r.where for r in held_out} == {r.where for r in rows}
    assert split_rows(rows, 0.25, seed=1) == (train, held_out)
    assert split_rows(rows, 0.25, seed=2) != (train, held_out)
    # The same on every machine and Python.
    assert [r.where for r in held_out] == ["4", "7", "8", "16", "24", "25", "28", "30", "31", "36"]


@pytest.mark.parametrize(
    ("count", "fraction", "expected"), [(2, 0.001, 1), (2, 0.999, 1), (5, 0.001, 1), (5, 0.999, 4)]
)
def test_each_side_of_a_split_gets_a_row(count, fraction, expected):
    train, held_out = split_rows([row(text="a")] * count, fraction, seed=0)
    assert (len(train), len(held_out)) == (count - expected, expected)


@pytest.mark.parametrize(
    ("count", "fraction"), [(1, 0.5), (0, 0.5), (9, 0.0), (9, 1.0), (9, -0.1), (9, float("nan"))]
)
def test_impossible_splits_are_refused(count, fraction):
    with pytest.raises(
        DataError,
        match=r"needs at least 2 rows, got .*to 0 to train on everything" if count < 2 else "between 0 and 1",
    ):
        split_rows([row(text="a")] * count, fraction, seed=0)


# Forms


@pytest.mark.parametrize(("fields", "message"), BAD_ROWS)
def test_bad_rows_are_named(fields, message):
    with pytest.raises(DataError, match=r"^data.jsonl:17: .*" + message):
        reference_answer(row(**fields))


def test_an_unknown_form_lists_the_accepted_ones():
    with pytest.raises(DataError) as raised:
        reference_answer(row(question="a"))
    assert all(
        form in str(raised.value)
        for form in ('{"messages":', '{"prompt": ..., "completion": ...}', '{"text": ...}')
    )


def test_messages_come_before_prompt_and_prompt_before_text():
    assert (
        reference_answer(row(messages=[USER, ANSWER], prompt="a", completion="b", text="c")) == "two is four"
    )
    assert reference_answer(row(messages=None, prompt="a", completion="b", text="c")) == "b"


def test_columns_that_are_not_used_are_listed():
    """Catches weights, pictures and second forms that are ignored without a word."""
    rows = [
        Row({"messages": [], "tools": [], "images": [1], "text": "a"}, "a:1"),
        Row({"prompt": "a", "completion": "b", "weight": 1, "tools": "[]"}, "a:2"),
        Row({"text": "a", "completion": "b", "id": None}, "a:3"),
        Row({"prompt": [{}], "completion": [{}], "documents": []}, "a:4"),
    ]
    assert [unused_columns([row]) for row in rows] == [
        ["images", "text"],
        ["weight", "tools"],
        ["completion"],
        [],
    ]


def test_a_line_nested_too_deep_is_named(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text(
        '{"text": "a"}\n{"text": "a", "more": ' + "[" * 2000 + "]" * 2000 + "}\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=rf"{path}:2: .* nested too deep"):
        read_rows(path)


def test_a_path_is_a_path(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n', encoding="utf-8")
    assert read_rows(path) == read_rows(str(path))
