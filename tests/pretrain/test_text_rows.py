"""Rows of tokens: every token once and in order, and reading that can go on from any place."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.documents import TEXTS, as_lines, write_lines
from helpers.tokenizers import SPECIAL, build_tokenizer, with_specials

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.pretrain.corpus import Corpus, Document
from shadowpeft.pretrain.text_rows import Encoder, Place, Rows, collate


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(build_tokenizer(), 1000)


def slow_rows(texts: list[str], encoder: Encoder, length: int) -> list[list[int]]:
    """Cut a list of all tokens: the spec."""
    tokenizer = build_tokenizer()
    ids = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], encoder.separator]
    ]
    return [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]


def rows_of(tmp_path: Path, texts: list[str], encoder: Encoder, **settings) -> Rows:
    path = write_lines(tmp_path / "rows.jsonl", as_lines(texts))
    return Rows(Corpus(str(path)), encoder, 7, **settings)


def take(rows: Rows, count: int) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in islice(rows, count)]


def test_rows_are_the_documents_one_behind_another(tmp_path, encoder):
    """Catches tokens lost or doubled at the ends of rows and documents, and a missing end of text."""
    wanted = slow_rows(TEXTS, encoder, 7)
    assert len(wanted) > 4
    assert take(rows_of(tmp_path, TEXTS, encoder), len(wanted)) == wanted


def test_shuffling_changes_the_order_alone(tmp_path, encoder):
    """Catches rows lost in shuffling, an order that ignores the seed, and rows that leave their block."""
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
    """Catches a place that is a row, a document or a lap off: from each place the same rows must follow."""
    settings = {"held_out": 1, "block": block, "seed": 3}
    whole = list(islice(rows_of(tmp_path, TEXTS * 3, encoder, **settings), 50))
    assert whole[-1]["place"][0] >= 2, "the text was not read over again"
    for number in range(0, 49, 6):
        later = rows_of(tmp_path, TEXTS * 3, encoder, **settings)
        later.start = Place(*whole[number]["place"].tolist())
        assert take(later, 49 - number) == [row["input_ids"].tolist() for row in whole[number + 1 :]]


def tokens_of_zebra() -> set[int]:
    """Tokens that no other text has."""
    tokenizer = build_tokenizer()
    return set(tokenizer("zebra")["input_ids"]) - set(tokenizer(" ".join(TEXTS))["input_ids"])


def test_held_out_documents_are_never_trained_on(tmp_path, encoder):
    """Catches held-out text in later laps, when the text is begun again."""
    rows = rows_of(tmp_path, ["zebra " * 30, *TEXTS], encoder, held_out=1)
    zebra = tokens_of_zebra()
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
    zebra = tokens_of_zebra()
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
    """Catches a beginning-of-text token before each piece of a file, or before none, and a second end."""
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


def test_a_tokenizer_without_an_end_of_text_is_refused():
    """Catches documents that run into one another without a token between them."""
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match=r"no end-of-text token .*; set tokenizer.eos_token"):
        Encoder(tokenizer, 1000)


def test_text_of_less_than_a_row_can_be_evaluated_on(tmp_path, encoder):
    """Catches a short held-out text that is refused, padded or left out."""
    rows = rows_of(tmp_path, ["hello"], encoder)
    ids = build_tokenizer()("hello", add_special_tokens=False)["input_ids"]
    assert 1 < len(ids) + 1 < 7
    (row,) = rows.head(3)
    assert row.tolist() == [*ids, encoder.separator]
    assert len(rows_of(tmp_path, TEXTS, encoder).head(3)) == 3
