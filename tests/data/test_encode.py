"""Rows to token examples: strings and texts, bad input, lengths and batches; chats have a file of their
own."""

import json
import warnings

import pytest
from helpers.rows import ANSWER, BAD_ROWS, USER, row
from helpers.tokenizers import build_tokenizer, ids_of, learned, with_specials, words_tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from shadowpeft.data.encode import context_length, encode, encode_all, encode_prompt
from shadowpeft.data.rows import read_rows, reference_answer
from shadowpeft.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


# Prompt and completion strings


def test_prompt_and_completion_are_tokenised_apart(tokenizer):
    pair = row(prompt="what is tw", completion="o plus two")
    example = encode(pair, tokenizer, 100)
    prompt, completion = ids_of(tokenizer, "what is tw"), ids_of(tokenizer, "o plus two")
    assert example["input_ids"] == [*prompt, *completion, tokenizer.eos_token_id]
    assert example["labels"] == [-100] * len(prompt) + [*completion, tokenizer.eos_token_id]
    assert example["input_ids"][:-1] != ids_of(
        tokenizer, "what is two plus two"
    )  # else the test could not tell
    assert encode_prompt(pair, tokenizer) == prompt
    assert reference_answer(pair) == "o plus two"


@pytest.mark.parametrize("single", ["<s> $A", "<s> $A <|im_end|>", "$A <|im_end|>"])
def test_special_tokens_open_the_prompt_and_end_the_answer_once(single):
    tokenizer = with_specials(single)
    head = [tokenizer.bos_token_id] if "<s>" in single else []
    pair = row(prompt="what", completion="two")
    ids = [*head, *ids_of(tokenizer, "what"), *ids_of(tokenizer, "two"), tokenizer.eos_token_id]
    assert encode(pair, tokenizer, 100)["input_ids"] == ids
    assert encode_prompt(pair, tokenizer) == [*head, *ids_of(tokenizer, "what")]
    text = encode(row(text="two"), tokenizer, 100)
    assert text["input_ids"] == [*head, *ids_of(tokenizer, "two"), tokenizer.eos_token_id]


def test_an_end_that_the_completion_spells_out_is_not_doubled(tokenizer):
    spelled = encode(row(prompt="what", completion="two<|im_end|>"), tokenizer, 100)
    assert spelled == encode(row(prompt="what", completion="two"), tokenizer, 100)


def test_an_end_that_the_prompt_spells_out_is_kept(tokenizer):
    assert encode_prompt(row(prompt="what<|im_end|>"), tokenizer)[-1] == tokenizer.eos_token_id


def test_a_prompt_without_completion_can_be_generated_from_but_not_learned(tokenizer):
    for prompt_only in (row(prompt="what"), row(prompt="what", completion=None)):
        assert encode_prompt(prompt_only, tokenizer) == ids_of(tokenizer, "what")
        assert reference_answer(prompt_only) is None
        with pytest.raises(DataError, match=r"data.jsonl:17: training needs a completion"):
            encode(prompt_only, tokenizer, 100)


@pytest.mark.parametrize("single", ["$A", "<s> $A <|im_end|>"])
def test_an_empty_prompt_is_refused(single):
    tokenizer = with_specials(single)
    for refused in (encode_prompt, lambda r, t: encode(r, t, 100)):
        with pytest.raises(DataError, match=r"data.jsonl:17: the prompt '' encodes to no token"):
            refused(row(prompt="", completion="two"), tokenizer)


def test_a_tokenizer_without_an_end_of_sequence_token_is_refused():
    with pytest.raises(DataError, match=r"data.jsonl:17: the tokenizer has no end-of-sequence token"):
        encode(row(prompt="what", completion="two"), build_tokenizer(eos_token=None), 100)


# Plain text


def test_plain_text_is_learned_whole(tokenizer):
    text = row(text="two plus two")
    ids = [*ids_of(tokenizer, "two plus two"), tokenizer.eos_token_id]
    assert encode(text, tokenizer, 100) == {"input_ids": ids, "labels": ids}
    assert encode_prompt(text, tokenizer) == ids[:-1]
    assert reference_answer(text) is None


# Answers that cannot be encoded


@pytest.mark.parametrize("fields", [{"prompt": "yes", "completion": "no maybe"}, {"text": "no maybe"}])
def test_an_answer_with_an_unknown_token_is_refused(fields):
    with pytest.raises(
        DataError,
        match=r"data.jsonl:17: the tokenizer has no token for a part of 'no maybe' \(it gives <unk>\)",
    ):
        encode(row(**fields), words_tokenizer(), 100)


def test_an_unknown_token_in_the_prompt_or_spelled_out_is_no_failure():
    assert encode(row(prompt="maybe", completion="no"), words_tokenizer(), 100)["input_ids"] == [0, 3, 1]
    assert encode(row(prompt="yes", completion="no <unk>"), words_tokenizer(), 100)["input_ids"] == [
        2,
        3,
        0,
        1,
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "what", "completion": ""},
        {"text": ""},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
    ],
)
def test_an_empty_answer_is_refused(tokenizer, fields):
    with pytest.raises(DataError, match=r"data.jsonl:17: expected an answer to learn, got ''"):
        encode(row(**fields), tokenizer, 100)


# Bad rows


@pytest.mark.parametrize(("fields", "message"), BAD_ROWS)
def test_bad_rows_are_refused(tokenizer, fields, message):
    for refused in (lambda r: encode(r, tokenizer, 100), lambda r: encode_prompt(r, tokenizer)):
        with pytest.raises(DataError, match=r"^data.jsonl:17: .*" + message):
            refused(row(**fields))


# Length


def test_a_long_answer_is_cut_and_counted_once(tokenizer):
    long, short = (
        row("long", prompt="what", completion="two plus two"),
        row("short", prompt="what", completion="t"),
    )
    whole = encode(long, tokenizer, 100)
    length = len(whole["input_ids"])
    with pytest.warns(UserWarning, match=r"longer than max_length") as caught:
        examples = encode_all([short, long, long], tokenizer, length - 1)
    (warning,) = caught
    assert f"2 of 3 rows are longer than max_length={length - 1} tokens" in str(warning.message)
    assert "the first is long" in str(warning.message)
    assert warning.filename == __file__
    assert (
        examples[1]
        == {name: values[:-1] for name, values in whole.items()}
        == encode(long, tokenizer, length - 1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode_all([short, long], tokenizer, length) == [encode(short, tokenizer, 100), whole]


@pytest.mark.parametrize(
    "fields", [{"prompt": "what is two", "completion": "four"}, {"messages": [USER, ANSWER]}]
)
def test_a_prompt_that_fills_the_length_is_refused(tokenizer, fields):
    length = len(encode_prompt(row(**fields), tokenizer))
    message = (
        f"data.jsonl:17: the prompt has {length} tokens, which leaves no room for an answer within "
        f"max_length={length}; raise"
    )
    for refused in (encode, lambda r, t, n: encode_all([r], t, n)):
        with pytest.raises(DataError, match=message):
            refused(row(**fields), tokenizer, length)
    assert len(learned(encode(row(**fields), tokenizer, length + 1))[0]) == 1


def test_lengths_that_leave_nothing_to_learn_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"max_length must be at least 2 .* got 1"):
        encode(row(text="two plus two"), tokenizer, 1)


def test_texts_beyond_the_tokenizers_own_limit_do_not_warn(caplog):
    tokenizer = build_tokenizer(model_max_length=4)
    encode(row(text="two plus two " * 9), tokenizer, 4)
    encode(row(messages=[USER, ANSWER]), tokenizer, 100)
    encode_prompt(row(messages=[USER, ANSWER]), tokenizer)
    assert not caplog.records


def test_encoding_no_rows_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"expected at least one row to encode, got none"):
        encode_all([], tokenizer, 100)


def test_read_rows_can_be_encoded(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    fields = [{"text": "two"}, {"prompt": "what", "completion": "two"}, {"messages": [USER, ANSWER]}]
    path.write_text("\n".join(json.dumps(f) for f in fields), encoding="utf-8")
    rows = read_rows(str(path))
    assert encode_all(rows, tokenizer, 100) == [encode(r, tokenizer, 100) for r in rows]


@pytest.mark.parametrize(
    ("max_positions", "tokenizer_limit", "requested", "expected"),
    [
        (64, 32, None, 32),
        (64, 128, None, 64),
        (None, 32, None, 32),
        (64, None, None, 64),
        (64, 32, 64, 64),
        (None, 32, 99, 99),
        (64, 32, 2, 2),
    ],
)
def test_context_length(tokenizer, monkeypatch, max_positions, tokenizer_limit, requested, expected):
    monkeypatch.setattr(tokenizer, "model_max_length", tokenizer_limit or VERY_LARGE_INTEGER)
    assert context_length(max_positions, tokenizer, requested) == expected


@pytest.mark.parametrize(
    ("max_positions", "requested", "message"),
    [
        (64, 65, "at most the model's 64 tokens, got 65"),
        (64, 1, "got 1"),
        (None, 0, "at least 2 tokens, got 0"),
        (None, None, "set max_length"),
    ],
)
def test_impossible_context_lengths_are_refused(tokenizer, max_positions, requested, message):
    assert tokenizer.model_max_length == VERY_LARGE_INTEGER
    with pytest.raises(ConfigError, match=message):
        context_length(max_positions, tokenizer, requested)


# Batches


def test_columns_that_are_not_used_are_told_of_once(tokenizer):
    rows = [row(prompt="what", completion=" two", weight=2, images=["a.png"])] * 2
    with pytest.warns(UserWarning, match="columns that are not used: 'weight', 'images'") as said:
        encode_all(rows, tokenizer, 100)
    assert len(said) == 1
