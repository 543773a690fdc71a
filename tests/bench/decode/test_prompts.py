"""What is continued, and how far."""

import json

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench.decode.prompts import (
    Prompt,
    facts_of,
    random_prompt,
    read_prompts,
    up_to_their_ends,
)
from shadowpeft.embedded import MODEL
from shadowpeft.errors import DataError
from shadowpeft.storage import stock_models


class Ends:
    """A model that ends each text after so many tokens."""

    device = CPU

    def __init__(self, *lengths: int) -> None:
        self.lengths = iter(lengths)

    def generate(self, input_ids, attention_mask, do_sample, max_new_tokens):
        written = min(next(self.lengths), max_new_tokens)
        return torch.cat([input_ids, torch.ones(1, written, dtype=torch.long)], 1)


def test_a_random_prompt_is_the_same_each_time():
    one, other = (random_prompt(512, batch=2, context=8, new_tokens=24, seed=1, device=CPU) for _ in range(2))
    assert torch.equal(one.ids_BT, other.ids_BT)
    assert one.ids_BT.shape == (2, 8)
    assert one.room == 32


def test_texts_end_where_the_attached_model_ends_them():
    """Catches a method that must write on behind an end, and a static cache that is first made too short."""
    texts = [torch.ones(1, length, dtype=torch.long) for length in (5, 9, 7, 6)]
    found = up_to_their_ends(Ends(40, 31, 64, 25), texts, new_tokens=64)
    # 31 tokens of which the last is the end, none behind 64, and 24 that are just enough.
    assert [(prompt.ids_BT.shape[1], prompt.new_tokens) for prompt in found] == [
        (7, 64),
        (5, 39),
        (9, 30),
        (6, 24),
    ]
    with pytest.raises(DataError, match="ends each of the 2 texts before 24 tokens"):
        up_to_their_ends(Ends(3, 24), texts[:2], new_tokens=64)


def test_prompts_of_a_file(tmp_path):
    tokenizer = stock_models.load_tokenizer(str(MODEL))
    rows = [{"prompt": f"What is {number}?", "completion": " It is a number."} for number in range(5)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = read_prompts(str(path), "test", 3, tokenizer, limit=100, new_tokens=24)
    assert [tokenizer.decode(ids[0]).strip() for ids in found] == ["What is 0?", "What is 1?", "What is 2?"]
    with pytest.raises(DataError, match="leaves no room for 24 new ones within 25"):
        read_prompts(str(path), "test", 3, tokenizer, limit=25, new_tokens=24)


def test_facts():
    ids_BT = torch.ones(1, 8, dtype=torch.long)
    found = facts_of([Prompt(ids_BT, 30), Prompt(ids_BT[:, :5], 41)])
    assert found == {"batch": 1, "context": 6, "new_tokens": 36, "texts": 2}
