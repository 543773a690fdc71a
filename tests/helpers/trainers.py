"""Settings of transformers' Trainer, and rows for it, as short runs need them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

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


def by_steps(folder: Path, **changes: Any) -> TrainingArguments:
    """Settings of a run whose best step is not its last: a higher loss is called better."""
    return brief_arguments(
        folder,
        max_steps=6,
        learning_rate=0.5,
        **{"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2},
        **{"metric_for_best_model": "loss", "greater_is_better": True, **changes},
    )


def assert_best_step_is_loaded(trainer: Trainer, folder: Path, adapter: nn.Module) -> None:
    """Check that after a run of `by_steps` an adapter has the weights of the best step, to the bit."""
    logged = trainer.state.log_history
    losses = {log["step"]: log["eval_loss"] for log in logged if "eval_loss" in log}
    best = max(losses, key=losses.__getitem__)
    assert best != trainer.state.max_steps, "the last step is the best; the test shows nothing"
    saved = load_file(folder / f"checkpoint-{best}" / "shadow.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in adapter.state_dict().items())


def language_rows(count: int = 8, length: int = 9) -> list[dict[str, Any]]:
    """Rows of equal length as the Trainer's own collator takes them."""
    return [{"input_ids": row, "labels": row} for row in token_ids(count, length)]


def class_rows(count: int = 8, length: int = 9) -> list[dict[str, Any]]:
    return [{"input_ids": row, "labels": i % 3} for i, row in enumerate(token_ids(count, length))]
