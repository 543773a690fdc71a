"""What the cells of one process share: tokenizers, configurations and the items of each task, read once."""

import functools
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from shadowpeft import arch
from shadowpeft.compare.examples import encode_items
from shadowpeft.compare.measure import encode_questions
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Item, Split, Task
from shadowpeft.compare.tasks.source import RowSource
from shadowpeft.errors import DataError
from shadowpeft.storage import stock_models

_ROWS_SEED = 0

T = TypeVar("T")


@dataclass(frozen=True)
class Questions:
    """Items that a model is measured on.

    Attributes:
        items: the items.
        encoded: their token ids.
        digest: equal for equal items in the same order, and for no others.
    """

    items: list[Item]
    encoded: list[list[int]]
    digest: str


def draw(rows: Sequence[T], limit: int | None, skips: Sequence[int] = ()) -> list[T]:
    """Draw at most `limit` rows, in their order. Every run draws the same ones.

    Args:
        rows: what to draw from.
        limit: the most to draw; `None` for all.
        skips: sizes of earlier draws, whose rows are left out. Each took its rows from what the ones before
            it had left.
    """
    left: Sequence[int] = range(len(rows))
    for skip in skips:
        taken = set(_sample(left, skip))
        left = [index for index in left if index not in taken]
    return [rows[index] for index in _sample(left, limit)]


def _sample(indices: Sequence[int], limit: int | None) -> Sequence[int]:
    if limit is None or limit >= len(indices):
        return indices
    return sorted(random.Random(_ROWS_SEED).sample(indices, limit))


@functools.cache
def tokenizer_of(model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base."""
    return stock_models.load_tokenizer(model)


@functools.cache
def config_of(model: str) -> PretrainedConfig:
    """Return the configuration of a base."""
    return stock_models.load_config(model)


@functools.cache
def source_of(data_dir: str | None) -> RowSource:
    """Return where the rows of a data folder, or of the hub, are read."""
    return RowSource(data_dir)


def length_limit(model: str, study: Study, task: Task) -> int:
    """Return how many tokens a training row may have, by the study or the task, and the model's context."""
    wanted = study.max_length or task.max_length
    return min(wanted, arch.context_of(config_of(model)) or wanted)


def items_of(task: Task, split: Split, data_dir: str | None) -> list[Item]:
    """Return the items of a split.

    Raises:
        DataError: there are none.
    """
    items = task.load(split, source_of(data_dir))
    if not items:
        raise DataError(f"{task.name}: the {split} split has no rows; add some")
    return items


@functools.lru_cache(maxsize=16)
def examples_of(
    model: str, task: Task, split: Split, data_dir: str | None, limit: int | None, max_length: int
) -> list[Any]:
    """Return at most `limit` items of a split as training examples."""
    return encode_items(task, draw(items_of(task, split, data_dir), limit), tokenizer_of(model), max_length)


@functools.lru_cache(maxsize=16)
def questions_of(
    model: str,
    task: Task,
    split: Split,
    data_dir: str | None,
    limit: int | None,
    skips: tuple[int, ...],
    max_length: int,
) -> Questions:
    """Return at most `limit` items of a split to measure on, without those that `skips` leaves out."""
    items = draw(items_of(task, split, data_dir), limit, skips)
    return Questions(items, encode_questions(tokenizer_of(model), task, items, max_length), _digest(items))


def _digest(items: Sequence[Item]) -> str:
    content = json.dumps([[item.prompt, item.target, item.choices] for item in items], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
