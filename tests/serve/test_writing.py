"""Answers as they are written."""

import pytest
from helpers.tokenizers import build_tokenizer, ids_of

from shadowpeft.data.encode import Opening
from shadowpeft.generate.choose import Chosen
from shadowpeft.serve.backend import Piece
from shadowpeft.serve.writing import Decoder, Ends, Vocabulary, Writing

TOKENIZER = build_tokenizer()
END = TOKENIZER.eos_token_id


def write(
    ids: list[int], stop: tuple[str, ...] = (), most: int = 99, opening: str = "", tells: bool = True
) -> list[Piece]:
    """Write ids to their end, and return the pieces."""
    writing = Writing(
        prompt_tokens=2,
        ends=Ends(frozenset([END]), stop, most),
        decoder=Decoder(TOKENIZER),
        vocabulary=Vocabulary(TOKENIZER),
        opening=Opening(opening, len(ids_of(TOKENIZER, opening))),
        reads_tokens=tells,
    )
    pieces = []
    for token in ids:
        piece = writing.add(Chosen(token, -0.5, ((token, -0.5),), 0.1))
        if piece is not None:
            pieces.append(piece)
        if writing.finish is not None:
            return pieces
    return pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


TEXTS = ["two plus two is four", "naïve 你好 👩\u200d🚀!", "a\n\n  b", "\ufffd and more"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_together_are_the_decoded_text(text):
    """Catches characters of several tokens that come broken or twice, and spaces that are lost."""
    ids = ids_of(TOKENIZER, text)
    pieces = write([*ids, END])
    assert text_of(pieces) == TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert all(piece.text == "".join(token.text for token in piece.tokens) for piece in pieces)
    assert "\ufffd" in text or all("\ufffd" not in piece.text for piece in pieces)
    assert (pieces[-1].finish, pieces[-1].usage.completion) == ("stop", len(ids) + 1)
    assert [token.is_silent for piece in pieces for token in piece.tokens] == [False] * len(ids) + [True]


def test_a_character_that_stays_incomplete_is_told_at_the_end():
    """Catches an end that is swallowed: decoding all ids gives a replacement character."""
    ids = ids_of(TOKENIZER, "a👩")[:-1]
    whole = TOKENIZER.decode(ids, skip_special_tokens=True)
    assert whole.endswith("\ufffd")
    for pieces in (write(ids, most=len(ids)), write([*ids, END])):
        assert text_of(pieces) == whole
    assert [piece.text for piece in write([*ids, END], tells=False)][-1] != ""


@pytest.mark.parametrize("stop", ["is", "s f", "plus two is", "four", "two plus"])
def test_a_stop_string_cuts_across_tokens(stop):
    """Catches a stop that is found only within one token, told in part, or left in the text."""
    text = "two plus two is four"
    pieces = write([*ids_of(TOKENIZER, text), END], (stop, "never"))
    assert text_of(pieces) == text[: text.index(stop)]
    assert pieces[-1].finish == "stop"
    assert "".join(token.text for piece in pieces for token in piece.tokens) == text_of(pieces)


def test_what_only_begins_like_a_stop_string_is_given():
    """Catches text that is held back and then lost, at the end too."""
    text = "two plus two is fou"
    ids = ids_of(TOKENIZER, text)
    pieces = write([*ids, END], ("four", "plus three", "o plus x"))
    assert text_of(pieces) == text
    assert text_of(write(ids, ("four",), most=len(ids))) == text


def test_text_is_not_held_back_without_need():
    """Catches a stream that lags by the longest stop string."""
    ids = ids_of(TOKENIZER, "two plus two")
    assert len(write(ids, ("zzzzzzzzzzzz",))) == len(ids)


def test_the_length_ends_an_answer():
    pieces = write(ids_of(TOKENIZER, "two plus two"), most=2)
    assert (pieces[-1].finish, pieces[-1].usage.completion) == ("length", 2)


@pytest.mark.parametrize("opening", ["<think>\n\n</think>\n\n", "assistant "])
def test_what_a_template_opens_an_answer_with_is_left_out(opening):
    """Catches an empty block of thoughts in the answer, and an answer that is cut for beginning alike."""
    ids = [*ids_of(TOKENIZER, opening), *ids_of(TOKENIZER, "two plus")]
    pieces = write([*ids, END], opening=opening)
    assert text_of(pieces).strip() == "two plus"
    # A policy is calibrated on all that is generated.
    told = [token for piece in pieces for token in piece.tokens]
    assert [token.id for token in told] == [*ids, END]
    assert "".join(token.text for token in told if not token.is_silent) == text_of(pieces)
    other = ids_of(TOKENIZER, opening[:3] + "other")
    assert text_of(write([*other, END], opening=opening)) == opening[:3] + "other"
    begun = ids_of(TOKENIZER, opening)[:2]
    assert text_of(write([*begun, END], opening=opening)) == TOKENIZER.decode(begun)


def test_the_likeliest_tokens_have_their_texts():
    (first, *_) = write(ids_of(TOKENIZER, "two plus"))
    assert first.tokens[0].top == ((first.text, -0.5),)
    assert write(ids_of(TOKENIZER, "two"), tells=False)[0].tokens == ()
