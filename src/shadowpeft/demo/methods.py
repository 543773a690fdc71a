"""The two ways of adapting that the demo compares: one Trainer, the same rows in the same order."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from shadowpeft.compare.peft_methods import peft_model
from shadowpeft.config import ShadowConfig
from shadowpeft.data.encode import Example
from shadowpeft.data.packing import Collator
from shadowpeft.demo.settings import LORA, SHADOW, Lora, Settings, Shadow
from shadowpeft.model import attach


@dataclass
class Curve:
    """The course of one training run: its losses by step, and how long it took."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


class _Watch(TrainerCallback):
    """A callback that notes the losses and moves a progress bar."""

    def __init__(self, curve: Curve, progress: Any) -> None:
        self.curve, self.progress = curve, progress

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.curve.steps.append(state.global_step)
            self.curve.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps)


def with_lora(base: PreTrainedModel, lora: Lora = LORA) -> Any:
    """Wrap a base with LoRA on all its linear layers."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return peft_model(
        base, LoraConfig(r=lora.rank, lora_alpha=2 * lora.rank, target_modules=targets, task_type="CAUSAL_LM")
    )


def with_shadow(base: PreTrainedModel, shadow: Shadow = SHADOW, pretrained: Path | None = None) -> Any:
    """Put a shadow beside a base, of the variant that the settings were searched for.

    Args:
        base: the model to adapt.
        shadow: the settings.
        pretrained: folder of the shadow to start from; by default a random one is built.
    """
    config = ShadowConfig(
        variant="paper",
        r=shadow.rank,
        alpha=shadow.alpha,
        shadow_loss_weight=shadow.loss_weight,
        dropout=shadow.dropout,
    )
    return attach(base, config, shadow=pretrained)


def fit(
    model: Any,
    rows: list[Example],
    pad_token_id: int,
    settings: Settings,
    learning_rate: float,
    folder: str,
    progress: Any,
) -> Curve:
    """Train with transformers' Trainer; a shadowed model needs nothing special.

    Args:
        model: what to train, in place.
        rows: the examples.
        pad_token_id: id that fills up a batch.
        settings: epochs, batch size and seed.
        learning_rate: its peak.
        folder: where the Trainer may write.
        progress: called with (done, total) after each step.
    """
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=settings.batch,
        num_train_epochs=settings.epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
        train_sampling_strategy="group_by_length",
    )
    result = Curve()
    # transformers asks for a data set; a list is all that its data loader needs.
    dataset: Any = rows
    trainer = Trainer(
        model,
        arguments,
        data_collator=Collator(pad_token_id, mask=False),
        train_dataset=dataset,
        callbacks=[_Watch(result, progress)],
    )
    trainer.remove_callback(PrinterCallback)
    began = time.perf_counter()
    trainer.train()
    result.seconds = time.perf_counter() - began
    model.eval()
    return result
