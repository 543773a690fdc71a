"""Where rows come from: a folder or the hub, and what is said if they are missing or bad."""

import datasets
import pytest
from helpers.task_rows import (
    everything,
    local_rows,
    write_sets,
)

from shadowpeft.compare.tasks import RowSource, held_out_text
from shadowpeft.errors import DataError


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "gsm8k",
            None,
            r"the data folder .* has no set 'gsm8k', only amazon5, arc_challenge, .*; add "
            r".*gsm8k.train.jsonl or leave --data-dir out",
        ),
        (
            "gsm8k",
            "test",
            r"the data folder .*gsm8k has no split 'test' \(test.jsonl or test.jsonl.gz\), only "
            r"train.jsonl; add it",
        ),
        (
            "squad_v2",
            "validation",
            r"the data folder .*squad_v2 has no split 'validation' .*, only nothing; add it",
        ),
        ("wiki_en", "validation", r"the data folder .*wiki_en has no split 'validation'"),
    ],
)
def test_a_missing_set_or_split_is_named(local, tmp_path, name, split, message):
    for path in (tmp_path / name).iterdir():
        if split in (None, path.name.partition(".")[0]):
            path.unlink()
    if split is None:
        (tmp_path / name).rmdir()
    with pytest.raises(DataError, match=message):
        held_out_text(local, 1) if name == "wiki_en" else everything(name, local)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"there is no data folder .*nowhere; give --data-dir a folder with one folder a data set",
    ):
        everything("sst5", RowSource(str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no way"),
        ValueError("no config"),
        RuntimeError("no scripts"),
        datasets.exceptions.DatasetNotFoundError("none"),
    ],
)
def test_a_missing_hub_is_one_sentence(monkeypatch, error):
    """Catches a trace of the hub's client where a sentence is due."""

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        DataError,
        match=(
            r"openai/gsm8k cannot be loaded from the hub \(.*\); .*--data-dir with a folder that holds "
            r"gsm8k/train"
        ),
    ):
        everything("gsm8k", RowSource())


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        (
            "gsm8k",
            {"question": "How many?"},
            r"train.jsonl:41: expected 'answer' to be str, got no such field; the fields are question",
        ),
        (
            "gsm8k",
            {"question": "How many?", "answer": "four"},
            r"train.jsonl:41: expected an answer that ends in '#### NUMBER', got 'four'",
        ),
        (
            "mawps",
            {"question": "How many?", "answer": "four"},
            r"train.jsonl:26: expected a number for an answer, got 'four'",
        ),
        (
            "arc_easy",
            {"question": "Which?", "choices": ["a", "b"], "answer": 2},
            r"expected 2 to 8 choices and the index of one, got 2 and 2",
        ),
        (
            "arc_easy",
            {"question": "Which?", "choices": ["a", "b"], "answer": True},
            "expected 'answer' to be int, got bool True",
        ),
        (
            "subjqa",
            {"question": "Who?", "context": "He.", "answers": {"text": "He"}},
            "expected 'answers' to hold a list 'text'",
        ),
        (
            "clinc150",
            {"text": "hello", "intent": "new"},
            r"train split holds 1 label not among the 151 of the task \(new\)",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, row, message):
    rows = local_rows()[name]
    rows["train"].append(row)
    with pytest.raises(DataError, match=message):
        everything(name, write_sets(tmp_path, {name: rows}))


def test_held_out_text(local, hub):
    """Catches headings and stubs, on which perplexity means little."""
    assert held_out_text(local, 1) == [("long " * 60).strip()]
    assert len(held_out_text(local, 9)) == 2
    assert held_out_text(hub, 9) == [("long " * 60).strip()]
