"""Train any method's model with the Trainer of transformers.

Every method gets the same rows in the same order and the same schedule; the GPU is not waited for without
need.
"""

import contextlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from shadowpeft.compare.examples import ordered
from shadowpeft.errors import ConfigError
from shadowpeft.reporting.devices import synchronise
from shadowpeft.train.attention import sound_attention
from shadowpeft.train.trainer import BackboneRateTrainer, set_apart

# The heads of classifiers by the names of their weights, in PEFT's copies of them, too.
HEADS = re.compile(r"(^|\.)(score|shadow_score|shadow_head)\.")
WARMUP = 0.06  # share of the steps in which the learning rate rises

Collate = Callable[[Sequence[Any]], dict[str, Tensor]]


@dataclass(frozen=True)
class Training:
    """How every method is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: rows per step.
        learning_rate: its peak.
        seed: seed of the order of rows and of dropout.
        device: where the model is.
        bf16: whether to compute in bfloat16 under autocast.
        timed: whether to wait for the device after every step and keep the step's time.
        backbone_learning_rate: the peak for a shadow's backbone and projection; `None` for `learning_rate`.
        head_learning_rate: the peak for the new heads of a classifier; `None` for `learning_rate`.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    device: torch.device
    bf16: bool = False
    timed: bool = False
    backbone_learning_rate: float | None = None
    head_learning_rate: float | None = None


@dataclass
class TrainingOutcome:
    """The cost of a training run, and its loss.

    Attributes:
        steps: optimizer steps made.
        seconds: time of the training loop alone.
        tokens: tokens trained on, without padding.
        train_loss: mean loss of the last tenth of the steps.
        peak_gb: most memory in use on a GPU, in 10^9 bytes; `None` on a CPU.
        step_ms: time of each step in milliseconds, if the steps were timed.
    """

    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0
    train_loss: float | None = None
    peak_gb: float | None = None
    step_ms: list[float] = field(default_factory=list)


def precision(device: torch.device, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which models are trained and measured."""
    if bf16:
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def train(model: Any, examples: Sequence[Any], collate: Collate, training: Training) -> TrainingOutcome:
    """Train for exactly the given steps and leave the model in evaluation mode."""
    rows: Any = ordered(examples, training.steps * training.batch_size, training.seed)
    stopwatch = _Stopwatch(training)
    on_gpu = training.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model,
            _arguments(training, folder),
            data_collator=collate,
            train_dataset=rows,
            callbacks=[stopwatch],
            bf16=training.bf16,
        )
        trainer.backbone_learning_rate = training.backbone_learning_rate
        trainer.head_learning_rate = training.head_learning_rate
        trainer.remove_callback(PrinterCallback)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(training.device)
        with sound_attention():
            trainer.train()
    model.eval()
    last_losses = trainer.losses[-math.ceil(training.steps / 10) :]
    return TrainingOutcome(
        steps=trainer.state.global_step,
        seconds=stopwatch.seconds,
        tokens=sum(len(row["input_ids"]) for row in rows),
        train_loss=torch.stack(last_losses).float().mean().item(),
        peak_gb=torch.cuda.max_memory_allocated(training.device) / 1e9 if on_gpu else None,
        step_ms=stopwatch.step_ms,
    )


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
        train_sampling_strategy="sequential",  # the rows are in their order already
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # it would wait for the GPU at every step
        report_to=[],
        disable_tqdm=True,
        use_cpu=training.device.type == "cpu",
        dataloader_pin_memory=training.device.type == "cuda",
    )
    # One run, one GPU: the Trainer would spread the batch over all GPUs that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class _Trainer(BackboneRateTrainer):
    """A trainer that keeps the losses on the device.

    It computes the loss under an autocast of its own: the Trainer's would stay on the model after training.
    """

    def __init__(self, *args: Any, bf16: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.computes_in_bf16 = bf16
        self.head_learning_rate: float | None = None
        self.losses: list[Tensor] = []

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.head_learning_rate is not None:
            assert self.model is not None
            heads = {id(weight) for name, weight in self.model.named_parameters() if HEADS.search(name)}
            if not any(weight.requires_grad and id(weight) in heads for weight in self.model.parameters()):
                raise ConfigError(
                    "head_learning_rate is the rate of a classifier's new head, and this model trains none; "
                    "leave it out"
                )
            set_apart(optimizer, heads, self.head_learning_rate)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        with precision(self.args.device, self.computes_in_bf16):
            result: Any = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        loss = result[0] if return_outputs else result
        self.losses.append(loss.detach())
        return result


class _Stopwatch(TrainerCallback):
    """The time of the training loop, and of each step if that is wanted."""

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
