"""Train any method's model with transformers' Trainer: the same rows in the same order, the same schedule, no needless wait for the GPU."""

import contextlib
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.data.encode import Collator, Example, encode
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import DataError
from shadowpeft.reporting.devices import synchronise
from shadowpeft.train.attention import sound_attention
from shadowpeft.train.trainer import BackboneRateTrainer

WARMUP = 0.06

T = TypeVar("T")
Collate = Callable[[Sequence[Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Training:
    """How every method is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: rows a step.
        learning_rate: its peak.
        seed: of the order of rows and of dropout.
        device: where the model is.
        bf16: compute in bfloat16 under autocast.
        timed: wait for the device after every step and keep its time.
        backbone_learning_rate: the peak of a shadow's backbone and projection; `None` for `learning_rate`.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    device: torch.device
    bf16: bool = False
    timed: bool = False
    backbone_learning_rate: float | None = None


@dataclass
class Fit:
    """What a training run took and came to.

    Attributes:
        steps: optimizer steps made.
        seconds: of the training loop alone.
        tokens: real ones, padding left out.
        train_loss: mean of the last tenth of the steps.
        peak_gb: most memory in use on a GPU, in 10^9 bytes; `None` on a CPU.
        step_ms: time of each step, where it was asked for.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    train_loss: float | None = None
    peak_gb: float | None = None
    step_ms: list[float] = field(default_factory=list)


def precision(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which models are trained and measured."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()


def encode_items(
    task: Task, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Any]:
    """Turn items into training examples; a longer text to classify is cut, a longer prompt with its answer dropped.

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
    encoded = [encode(row, tokenizer, 2**30) for row in rows]
    kept = [example for example in encoded if len(example["input_ids"]) <= max_length]
    if not kept:
        shortest = min(len(example["input_ids"]) for example in encoded)
        raise DataError(
            f"{task.name}: no item fits max_length={max_length} tokens, the shortest has {shortest}; raise max_length"
        )
    return kept


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[list[int]]:
    """Turn texts to classify into token ids, cut to a length; a text without tokens becomes one token."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if texts else []
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
    """Draw `count` rows: the whole in a random order, then again in another, as long as needed. The seed alone decides."""
    generator, order = random.Random(seed), list[int]()
    while len(order) < count:
        order += generator.sample(range(len(rows)), len(rows))
    return [rows[index] for index in order[:count]]


def fit(model: Any, examples: Sequence[Any], collate: Collate, training: Training) -> Fit:
    """Train for exactly the given steps and leave the model in evaluation mode."""
    rows: Any = ordered(examples, training.steps * training.batch_size, training.seed)
    watch = _Watch(training)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model,
            _arguments(training, folder),
            data_collator=collate,
            train_dataset=rows,
            callbacks=[watch],
            bf16=training.bf16,
        )
        trainer.backbone_learning_rate = training.backbone_learning_rate
        trainer.remove_callback(PrinterCallback)
        if training.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(training.device)
        with sound_attention():
            trainer.train()
    model.eval()
    last = torch.stack(trainer.losses[-math.ceil(training.steps / 10) :]).float().mean().item()
    peak = torch.cuda.max_memory_allocated(training.device) / 1e9 if training.device.type == "cuda" else None
    tokens = sum(len(row["input_ids"]) for row in rows)
    return Fit(trainer.state.global_step, watch.seconds, tokens, last, peak, watch.step_ms)


def _arguments(training: Training, folder: str) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=training.batch_size,
        max_steps=training.steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(WARMUP * training.steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=training.seed,
        train_sampling_strategy="sequential",  # the rows are in order already
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the GPU at every step
        report_to=[],
        disable_tqdm=True,
        use_cpu=training.device.type == "cpu",
        dataloader_pin_memory=training.device.type == "cuda",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one run, one GPU
    return arguments


class _Trainer(BackboneRateTrainer):
    """Compute the loss under autocast, without the Trainer's own, which would stay on the model; keep losses on the device."""

    def __init__(self, *args: Any, bf16: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.computes_in_bf16 = bf16
        self.losses: list[Tensor] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with precision(self.args.device, self.computes_in_bf16):
            result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.losses.append((result[0] if return_outputs else result).detach())
        return result


class _Watch(TrainerCallback):
    """Time the training loop, and each step where it is asked for."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.seconds = 0.0
        self.step_ms: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        synchronise(self.training.device)
        self.began = self.last = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.training.timed:
            synchronise(self.training.device)
            now = time.perf_counter()
            self.step_ms.append(1000 * (now - self.last))
            self.last = now

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        synchronise(self.training.device)
        self.seconds = time.perf_counter() - self.began
