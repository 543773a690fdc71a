"""Settings of transformers' Trainer, and rows for it, as short runs need them."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from helpers.families import token_ids

BRIEF: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
}


def brief_arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), **{**BRIEF, **changes})


def language_rows(count: int = 8, length: int = 9) -> list[dict[str, Any]]:
    """Rows of equal length as the Trainer's own collator takes them."""
    return [{"input_ids": row, "labels": row} for row in token_ids(count, length)]


def class_rows(count: int = 8, length: int = 9) -> list[dict[str, Any]]:
    return [{"input_ids": row, "labels": i % 3} for i, row in enumerate(token_ids(count, length))]
