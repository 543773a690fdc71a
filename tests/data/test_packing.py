"""Batches of token examples: padded on the right, or several examples packed into a row."""

import pytest
import torch
from helpers.rows import row
from helpers.tokenizers import build_tokenizer
from transformers import PreTrainedTokenizerFast

from shadowpeft.data.encode import NO_LOSS, Example, encode_all
from shadowpeft.data.packing import Collator, pack


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def example(*ids: int, prompt: int = 0) -> Example:
    return Example(input_ids=list(ids), labels=[NO_LOSS] * prompt + list(ids[prompt:]))


def test_batches_are_padded_on_the_right():
    examples = [Example(input_ids=[5, 6, 7], labels=[-100, 6, 7]), Example(input_ids=[8], labels=[8])]
    batch = Collator(pad_token_id=9)(examples)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 7], [8, -100, -100]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert examples[1] == {"input_ids": [8], "labels": [8]}  # not padded in place
    batch.pop("attention_mask")
    torch.testing.assert_close(Collator(pad_token_id=9, mask=False)(examples), batch)


@pytest.mark.parametrize(("length", "multiple", "width"), [(3, 4, 4), (4, 4, 4), (5, 4, 8), (5, 1, 5)])
def test_batches_can_be_padded_to_a_multiple(length, multiple, width):
    batch = Collator(0, pad_to_multiple_of=multiple)([Example(input_ids=[1] * length, labels=[1] * length)])
    assert {tuple(tensor.shape) for tensor in batch.values()} == {(1, width)}
    assert batch["attention_mask"].sum() == length


def test_padding_that_is_also_the_end_keeps_the_end_learned(tokenizer):
    rows = [row(text="two plus two"), row(text="two")]
    batch = Collator(tokenizer.eos_token_id)(encode_all(rows, tokenizer, 100))
    last = batch["attention_mask"][1].sum() - 1
    assert batch["labels"][1, last] == tokenizer.eos_token_id
    assert (batch["labels"][1, last + 1 :] == -100).all()


def test_examples_are_packed_where_they_fit_best():
    """Catches a lost or cut example, a row too long, room that is wasted, and an example's first token
    learned from its neighbour."""
    given = [
        example(1, 2),
        example(*range(3, 8), prompt=2),
        example(8),
        example(9, 10, 11),
        example(12, 13, 14, 15),
    ]
    assert pack(given, 8) == [
        {
            "input_ids": [3, 4, 5, 6, 7, 9, 10, 11],
            "labels": [-100, -100, 5, 6, 7, -100, 10, 11],
            "position_ids": [0, 1, 2, 3, 4, 0, 1, 2],
        },
        {
            "input_ids": [12, 13, 14, 15, 1, 2, 8],
            "labels": [-100, 13, 14, 15, -100, 2, -100],
            "position_ids": [0, 1, 2, 3, 0, 1, 0],
        },
    ]
    many = [example(*range(start, start + 1 + start % 7)) for start in range(100)]
    rows = pack(many, 9)
    assert sorted(token for row in rows for token in row["input_ids"]) == sorted(
        token for one in many for token in one["input_ids"]
    )
    assert max(len(row["input_ids"]) for row in rows) == 9
    assert len(rows) == -(-sum(len(one["input_ids"]) for one in many) // 9), "these lengths fit without a gap"


def test_a_batch_of_packed_rows_has_positions_in_place_of_a_mask():
    """Catches a mask, beside which transformers does not look for documents, and padding that continues the
    last one."""
    batch = Collator(0)(pack([example(1, 2, 3), example(4, 5), example(6, 7, 8)], 5))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]],
        "labels": [[-100, 2, 3, -100, 5], [-100, 7, 8, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]],
    }
