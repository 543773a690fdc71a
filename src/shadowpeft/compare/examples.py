"""Items of a task as training examples: encoded, drawn in an order, and batched."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.data.encode import Example, encode
from shadowpeft.data.packing import Collator
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import DataError

T = TypeVar("T")


def encode_items(
    task: Task, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Any]:
    """Turn items into training examples of at most `max_length` tokens.

    A longer text to classify is cut; a longer prompt with its answer is left out.

    Raises:
        DataError: no item is short enough.
    """
    if task.kind == "classification":
        texts = encode_texts([item.prompt for item in items], tokenizer, max_length)
        return [{"input_ids": ids, "labels": item.target} for ids, item in zip(texts, items, strict=True)]
    rows = [
        Row({"prompt": item.prompt, "completion": item.answer}, f"{task.name} item {i}")
        for i, item in enumerate(items)
    ]
    # Encoded whole, since `encode` would cut the end of a long answer: the model would learn to stop early.
    encoded = [encode(row, tokenizer, 2**30) for row in rows]
    kept = [example for example in encoded if len(example["input_ids"]) <= max_length]
    if not kept:
        shortest = min(len(example["input_ids"]) for example in encoded)
        raise DataError(
            f"{task.name}: no item fits max_length={max_length} tokens, the shortest has {shortest}; "
            "raise max_length"
        )
    return kept


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[list[int]]:
    """Turn texts to classify into token ids, cut to a length; an empty text becomes one padding token."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return [list(ids) or [padding_id(tokenizer)] for ids in encoded]


@dataclass(frozen=True)
class ClassCollator:
    """Batch texts with their classes, padded on the right."""

    pad_token_id: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Map examples to `input_ids`, `attention_mask` and `labels`."""
        rows = [Example(input_ids=example["input_ids"], labels=example["input_ids"]) for example in examples]
        batch = Collator(self.pad_token_id)(rows)
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}


def ordered(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """Draw `count` rows: all of them in a random order, then again in another order, and so on.

    The order depends on the seed alone, so that every method sees the same rows.
    """
    generator, order = random.Random(seed), list[int]()
    while len(order) < count:
        order += generator.sample(range(len(rows)), len(rows))
    return [rows[index] for index in order[:count]]
