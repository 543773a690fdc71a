"""Text to rows: every kind of source, what is passed over, and that reading can go on from any place."""

import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from helpers.tokenizers import SPECIAL, build_tokenizer, with_specials
from pyarrow import parquet

from shadowpeft.errors import DataError
from shadowpeft.pretrain import corpus
from shadowpeft.pretrain.corpus import Corpus, Document, Unusable
from shadowpeft.pretrain.packing import Encoder, Place, Rows, collate

TEXTS = ["hello world", "what is two plus two", "think of the city", "four systems", "you are here and there"]


def write_lines(path: Path, lines: list[bytes]) -> Path:
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def as_lines(texts: list[str], field: str = "text") -> list[bytes]:
    return [json.dumps({field: text}).encode() for text in texts]


def texts_of(source: Path, first: int = 0, **settings) -> list[str]:
    return [
        found.content for found in Corpus(str(source), **settings).read(first) if isinstance(found, Document)
    ]


# Sources


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
    """Catches text lost or doubled between pieces, and pieces that each claim to begin or end the document."""
    monkeypatch.setattr(corpus, "_PIECE", 5)
    content = "one line\nand another\n\nthe last, without an end"
    (tmp_path / "book.txt").write_text(content, encoding="utf-8")
    found = list(Corpus(str(tmp_path / "book.txt")).read())
    assert "".join(piece.content for piece in found) == content
    assert [piece.begins for piece in found] == [True] + [False] * (len(found) - 1)
    assert [piece.ends for piece in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 2


def test_folder_is_read_in_the_order_of_names(tmp_path):
    """Catches an order that differs between machines, other files taken for text, and a start that forgets earlier files' rows."""
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b" / "1.jsonl", as_lines(TEXTS[3:]))
    write_lines(tmp_path / "a.jsonl", as_lines(TEXTS[:3]))
    (tmp_path / "README.md").write_text("not text to train on")
    assert texts_of(tmp_path) == TEXTS
    assert texts_of(tmp_path, first=4) == TEXTS[4:]


def test_hub_id_is_streamed(monkeypatch):
    """Catches a hub data set that is downloaded whole, read from another split, or started in the wrong place."""
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
    """Catches a wrong path, kind or field that is found out in the middle of a run, or not told with what to do."""
    path = tmp_path / name
    if isinstance(content, dict):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        list(Corpus(str(path)).read())


# Rows


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_tokenizer(), 1000)


def slow_rows(texts: list[str], encoder: Encoder, length: int) -> list[list[int]]:
    """All tokens in one list, cut: the spec."""
    tokenizer = encoder._tokenizer
    ids = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], encoder.separator]
    ]
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def rows_of(tmp_path: Path, texts: list[str], encoder: Encoder, length: int = 7, **settings) -> Rows:
    return Rows(
        Corpus(str(write_lines(tmp_path / "rows.jsonl", as_lines(texts)))), encoder, length, **settings
    )


def take(rows: Rows, count: int) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in islice(rows, count)]


def test_rows_are_the_documents_one_behind_another(tmp_path, encoder):
    """Catches tokens lost or doubled at the ends of rows and documents, and a missing end of text."""
    wanted = slow_rows(TEXTS, encoder, 7)
    assert len(wanted) > 4
    assert take(rows_of(tmp_path, TEXTS, encoder), len(wanted)) == wanted


def test_shuffling_changes_the_order_alone(tmp_path, encoder):
    """Catches rows lost in shuffling, an order that ignores the seed, and one that is the same in each lap."""
    wanted = slow_rows(TEXTS * 4, encoder, 7)
    orders = [
        take(rows_of(tmp_path, TEXTS * 4, encoder, block=8, seed=seed), len(wanted)) for seed in (0, 1, 0)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(wanted)
    assert orders[0] == orders[2]
    assert orders[0] != orders[1] != wanted
    assert sorted(orders[0][:8]) == sorted(wanted[:8]), "rows move within their block only"


@pytest.mark.parametrize("block", [1, 4, 10**6])
def test_rows_go_on_from_any_place(tmp_path, encoder, block):
    """Catches a place that is a row, a document or a lap off: over three laps, each place continues to the same rows."""
    settings = {"held_out": 1, "block": block, "seed": 3}
    whole = list(islice(rows_of(tmp_path, TEXTS * 3, encoder, **settings), 50))
    assert whole[-1]["place"][0] >= 2, "the text was not read over again"
    for number in range(0, 49, 6):
        later = rows_of(tmp_path, TEXTS * 3, encoder, **settings)
        later.start = Place(*whole[number]["place"].tolist())
        assert take(later, 49 - number) == [row["input_ids"].tolist() for row in whole[number + 1 :]]


def test_held_out_documents_are_never_trained_on(tmp_path, encoder):
    """Catches held-out text in later laps, when the text is begun again."""
    rows = rows_of(tmp_path, ["zebra " * 30, *TEXTS], encoder, held_out=1)
    zebra = set(encoder._tokenizer("zebra")["input_ids"]) - set(
        encoder._tokenizer(" ".join(TEXTS))["input_ids"]
    )
    assert zebra
    assert not any(zebra & set(row) for row in take(rows, 60))


def test_documents_are_held_out_and_not_rows(tmp_path, encoder):
    """Catches unusable rows that take the places of documents to hold out, so that these are trained on."""
    path = write_lines(
        tmp_path / "rows.jsonl",
        [b"", b"{", *as_lines(["zebra " * 30]), b"", *as_lines(["zebra " * 30, *TEXTS])],
    )
    rows = Rows(Corpus(str(path)), encoder, 7, held_out=2)
    assert rows.first == 5
    zebra = set(encoder._tokenizer("zebra")["input_ids"]) - set(
        encoder._tokenizer(" ".join(TEXTS))["input_ids"]
    )
    assert not any(zebra & set(row) for row in take(rows, 60))
    assert not rows.skipped.total(), "they belong to what is held out"


def test_passed_over_rows_are_counted_once(tmp_path, encoder):
    """Catches counts that grow with every lap, or that a resumed run loses or counts twice."""
    path = write_lines(tmp_path / "rows.jsonl", [b"", *as_lines(TEXTS), b"{", *as_lines(TEXTS)])
    rows = Rows(Corpus(str(path)), encoder, 7, block=2)
    places = [Place(*row["place"].tolist()) for row in islice(rows, 40)]
    assert places[-1].lap >= 2
    assert rows.skipped == {"empty": 1, "undecodable": 1}
    assert rows.first_skipped == {"empty": f"{path}:1", "undecodable": f"{path}:7"}
    for place in places[::5]:
        later = Rows(Corpus(str(path)), encoder, 7, block=2)
        later.start = place
        take(later, 40)
        assert later.skipped == {"empty": 1, "undecodable": 1}


def test_token_files_are_taken_as_they_are(tmp_path, encoder):
    """Catches tokens changed, or separators added, in a file of token ids."""
    np.savez_compressed(tmp_path / "ids.npz", ids=np.arange(30, dtype=np.uint16))
    rows = Rows(Corpus(str(tmp_path / "ids.npz")), encoder, 8)
    assert take(rows, 3) == np.arange(24).reshape(3, 8).tolist()


def test_batch_keeps_each_rows_place(tmp_path, encoder):
    """Catches places that a batch mixes up, cuts short or loses."""
    rows = list(islice(rows_of(tmp_path, TEXTS, encoder), 3))
    batch = collate(rows)
    assert batch["input_ids"].shape == (3, 7)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["places"].tolist() == [row["place"].tolist() for row in rows]


def test_beginning_of_text_comes_once_a_document():
    """Catches a beginning-of-text token before each piece of a file, or left out where the tokenizer puts one, and a second end."""
    tokenizer = with_specials("<s> $A <|im_end|>")
    encoder = Encoder(tokenizer, 1000)
    bos, eos = SPECIAL.index("<s>"), SPECIAL.index("<|im_end|>")
    bare = tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert encoder(Document("hello")).tolist() == [bos, *bare, eos]
    assert encoder(Document("hello", begins=False, ends=False)).tolist() == bare


@pytest.mark.parametrize(
    ("texts", "settings", "told"),
    [
        (["a"], {}, "at least one row of 7 tokens, got less text"),
        (TEXTS, {"held_out": 5}, "behind the 5 documents held out"),
        ([" ", " "], {}, "2 empty rows were passed over"),
        ([" "], {}, "1 empty row was passed over"),
        (
            [" ", *TEXTS],
            {"held_out": 5},
            r"behind the 5 documents held out, got less text \(1 empty row was passed over",
        ),
    ],
    ids=["short", "all held out", "nothing but empty", "one that is empty", "empty among all held out"],
)
def test_too_little_text_is_refused(tmp_path, encoder, texts, settings, told):
    """Catches a run that reads the same few bytes for ever without a row to train on."""
    rows = rows_of(tmp_path, texts, encoder, **settings)
    with pytest.raises(DataError, match=told):
        next(iter(rows))


def test_token_beyond_the_model_is_refused(tmp_path):
    """Catches a tokenizer larger than the model, which on a GPU fails without a word of why."""
    rows = rows_of(tmp_path, TEXTS, Encoder(build_tokenizer(), 9))
    with pytest.raises(DataError, match="knows only 9 tokens"):
        next(iter(rows))
