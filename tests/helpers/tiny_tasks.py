"""Tiny tasks of every kind, cells of them, and a tiny model that answers them."""

import dataclasses
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Item, Scores, Task
from shadowpeft.storage import stock_models

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "star"]


def _score(items: Any, answers: Any) -> Scores:
    correct = [int(item.target == answer) for item, answer in zip(items, answers, strict=True)]
    return Scores(correct, {"accuracy": sum(correct) / len(correct)})


def words_of(index: int) -> str:
    return " ".join(WORDS[(index * step + step) % len(WORDS)] for step in range(1, 4 + index % 5))


def class_items(split: str, source: Any) -> list[Item]:
    return [Item(words_of(i), i % 3) for i in range({"train": 20, "validation": 6, "test": 7}[split])]


def question_items(split: str, source: Any) -> list[Item]:
    return [
        Item(f"Say {words_of(i)}:", WORDS[i % 12], f" {WORDS[i % 12]}")
        for i in range({"train": 20, "validation": 6, "test": 5}[split])
    ]


def choice_items(split: str, source: Any) -> list[Item]:
    return [
        Item(f"{words_of(i)} Answer:", i % 4, f" {'ABCD'[i % 4]}", choices=(" A", " B", " C", " D"))
        for i in range(6)
    ]


TASKS = {
    "classes": Task(
        "classes", "classification", "accuracy", class_items, _score, ("a", "b", "c"), max_length=16
    ),
    "questions": Task(
        "questions",
        "generation",
        "accuracy",
        question_items,
        _score,
        max_length=64,
        max_new_tokens=3,
        stop=("\n",),
    ),
    "choices": Task("choices", "choice", "accuracy", choice_items, _score, max_length=64),
}


def cell_of(study: Study, method: str, task: str = "classes", stage: Any = "final", **changes: Any) -> Cell:
    alpha = 0.3 if "shadow" in method else None
    return dataclasses.replace(Cell(stage, study.model, task, method, 16, 0, 1e-2, alpha), **changes)


def both(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and the tokenizer of a folder."""
    return stock_models.load_model(folder, torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
