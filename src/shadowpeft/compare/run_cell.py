"""One cell of a study from its base to its rows: build, train, measure."""

import functools
import gc
import hashlib
import json
import random
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from shadowpeft import arch
from shadowpeft.compare import measure, tasks
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.fit import ClassCollator, Collate, Fit, Training, encode_items, fit, precision
from shadowpeft.compare.methods import Built, build
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Item, Split, Task
from shadowpeft.compare.tasks.source import Source, held_out_text
from shadowpeft.data.encode import Collator, Example
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.errors import DataError
from shadowpeft.storage import stock_models

WINDOW = 256
TIMED_ITEMS, TIMED_TOKENS = 8, 32
WARM_UP_STEPS, TIMED_STEPS = 5, 20
_ROWS_SEED = 0

T = TypeVar("T")
Row = dict[str, Any]


def run_cell(cell: Cell, study: Study) -> list[Row]:
    """Train one method on one task and measure it.

    Args:
        cell: what to train; its stage says what is measured.
        study: the settings that all cells share.

    Returns:
        Rows of results, complete but for where they come from (study, versions, commit, device, time).

    Raises:
        UserError: a setting, a model or the data cannot be used.
        torch.OutOfMemoryError: the device is too small.
    """
    gc.collect()  # the Trainer of the cell before is a cycle that holds its model
    device = (
        torch.device("cpu")
        if study.device == "cpu" or not torch.cuda.is_available()
        else torch.device("cuda")
    )
    forgets = cell.stage == "final" and study.forgetting_rows > 0
    reference = (
        _reference(
            cell.model, study.data_dir, study.forgetting_rows, study.bf16, study.eval_batch_size, device
        )
        if forgets
        else None
    )
    task, tokenizer = tasks.find(cell.task), _tokenizer(cell.model)
    set_seed(cell.seed)
    built = build(cell, study, task, padding_id(tokenizer), device)
    built.model.eval()
    run = _Run(cell, study, task, tokenizer, device, built, _limit(cell.model, study, task))
    if cell.stage == "search":
        return run.search()
    return run.final(reference) if cell.stage == "final" else run.cost()


def draw(rows: Sequence[T], limit: int | None, skips: Sequence[int] = ()) -> list[T]:
    """Draw at most so many rows, in their order; the same ones in every run.

    Args:
        rows: what to draw from.
        limit: the most to draw; `None` for all.
        skips: leave out the rows that draws of so many take, one after another, each from what the ones before left.
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


@dataclass
class _Run:
    """A cell whose model is built."""

    cell: Cell
    study: Study
    task: Task
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    built: Built
    max_length: int

    def search(self) -> list[Row]:
        """Train, and measure on the validation split."""
        fitted = self._fit(self.study.steps)
        if self.task.kind == "generation":
            examples = self._examples("validation", self.study.validation_rows)
            head = functools.partial(arch.logits, self.built.stock)
            with precision(self.device, self.study.bf16):
                loss = measure.token_loss(
                    self.built.model,
                    head,
                    examples,
                    padding_id(self.tokenizer),
                    self.study.eval_batch_size,
                    causal=True,
                )
            return [
                self._row(
                    fitted,
                    "attached",
                    "validation",
                    metric="loss",
                    value=loss,
                    metrics={"loss": loss},
                    items=len(examples),
                )
            ]
        measured = self._measure(self.built.model, self.task, "validation", self.study.validation_rows)
        chosen_on = {name: measured[name] for name in ("metric", "value", "metrics", "items")}
        return [self._row(fitted, "attached", "validation", **chosen_on)]

    def final(self, reference: "_Reference | None") -> list[Row]:
        """Train, and measure on the test split of the task and of its partners, attached and detached."""
        fitted = self._fit(self.study.steps)
        forgetting = None if reference is None else reference.forgetting(self.built)
        partners = [tasks.find(name) for name in self.task.partners] if self.study.ood else []
        rows = []
        for mode, model in self._modes():
            costs: Row = {"forgetting": forgetting if mode == "attached" else None}
            if (
                self.study.workers == 1
            ):  # else the time is taken in the stage `cost`, where no other run is in the way
                costs["ms_per_answer"] = self._ms(model, _items(self.task, "validation", self.study.data_dir))
            for task in (self.task, *partners):
                measured = self._measure(
                    model, task, "test", self.study.test_rows, self.study.skips_of(task.name)
                )
                rows.append(self._row(fitted, mode, "test", task=task.name, **costs, **measured))
        return rows

    def cost(self) -> list[Row]:
        """Time training steps and answers; nothing is scored, and no test row is read."""
        fitted = self._fit(WARM_UP_STEPS + TIMED_STEPS, timed=True)
        step_ms = statistics.median(fitted.step_ms[WARM_UP_STEPS:]) if fitted.step_ms else None
        items = _items(self.task, "validation", self.study.data_dir)
        measured = {"metric": "train_ms_per_step", "value": step_ms}
        return [
            self._row(fitted, mode, "none", **measured, ms_per_answer=self._ms(model, items))
            for mode, model in self._modes()
        ]

    def _fit(self, steps: int, timed: bool = False) -> Fit:
        if not self.built.trainable(heads=True):
            return Fit()
        cell, pad = self.cell, padding_id(self.tokenizer)
        collate: Collate = ClassCollator(pad) if self.task.kind == "classification" else Collator(pad)
        training = Training(
            steps,
            self.study.batch_size,
            cell.learning_rate,
            cell.seed,
            self.device,
            self.study.bf16,
            timed,
            cell.backbone_learning_rate,
        )
        return fit(self.built.model, self._examples("train", self.study.train_rows), collate, training)

    def _examples(self, split: Split, limit: int | None) -> list[Any]:
        return _encoded(self.cell.model, self.task, split, self.study.data_dir, limit, self.max_length)

    def _modes(self) -> list[tuple[str, Any]]:
        attached = [("attached", self.built.model)]
        return (
            attached if self.built.detach is None else [*attached, ("detached", self.built.detach().eval())]
        )

    def _measure(
        self, model: Any, task: Task, split: Split, limit: int | None, skips: tuple[int, ...] = ()
    ) -> Row:
        asked = _asked(self.cell.model, task, split, self.study.data_dir, limit, skips, self.max_length)
        items, batch_size = asked.items, self.study.eval_batch_size
        with precision(self.device, self.study.bf16):
            given = measure.answer(
                model, self.tokenizer, task, items, batch_size, self.max_length, encoded=asked.encoded
            )
        if given.cut:
            warnings.warn(
                f"{task.name}: {given.cut} of {len(items)} prompts of the {split} split leave no room for an answer in the context of "
                f"{self.cell.model} and lost their beginning; choose a model with a longer context",
                stacklevel=2,
            )
        scores, calibration, metrics = task.score(items, given.answers), None, {}
        if given.probabilities is not None:
            calibration = measure.calibration(given.probabilities, scores.correct)
            metrics = {
                "nll": measure.negative_log_likelihood(given.probabilities, [item.target for item in items])
            }
        metrics = {**scores.metrics, **metrics}
        return {
            "metric": task.metric, "value": metrics[task.metric], "metrics": metrics, "items": len(items),
            "correct": "".join(map(str, scores.correct)), "items_digest": asked.digest, "calibration": calibration,
            "prompts_cut": given.cut,
        }  # fmt: skip

    def _ms(self, model: Any, items: Sequence[Item]) -> float:
        def ask(item: Item) -> None:
            measure.answer(model, self.tokenizer, self.task, [item], 1, self.max_length, most=TIMED_TOKENS)

        with precision(self.device, self.study.bf16):
            return measure.ms_per_answer(ask, draw(items, TIMED_ITEMS), self.device)

    def _row(self, fitted: Fit, mode: str, split: str, **measured: Any) -> Row:
        cell, built = self.cell, self.built
        speed = fitted.tokens / fitted.seconds if fitted.steps else None
        return {
            "stage": cell.stage, "status": "ok", "error": None, "key": cell.key, "model": cell.model, "task": cell.task,
            "trained_on": cell.task, "method": cell.method, "mode": mode, "rank": cell.rank, "seed": cell.seed,
            **cell.setting._asdict(), "split": split, "metric": None, "value": None, "metrics": {}, "items": None,
            "correct": None, "items_digest": None, "calibration": None, "prompts_cut": None, "trainable": built.trainable(),
            "trainable_with_heads": built.trainable(heads=True), "steps": fitted.steps, "train_seconds": fitted.seconds,
            "train_tokens_per_second": speed, "peak_gb": fitted.peak_gb, "adapter_bytes": built.adapter_bytes(),
            "ms_per_answer": None, "forgetting": None, "train_loss": fitted.train_loss,
            "config": {**built.config, "max_length": self.max_length},
            **measured,
        }  # fmt: skip


# What is read once in a process


@functools.cache
def _tokenizer(model: str) -> PreTrainedTokenizerBase:
    return stock_models.load_tokenizer(model)


@functools.cache
def _config(model: str) -> PretrainedConfig:
    return stock_models.load_config(model)


@functools.cache
def _source(data_dir: str | None) -> Source:
    return Source(data_dir)


def _limit(model: str, study: Study, task: Task) -> int:
    most = arch.context_of(_config(model))
    wanted = study.max_length or task.max_length
    return wanted if most is None else min(wanted, most)


def _items(task: Task, split: Split, data_dir: str | None) -> list[Item]:
    items = task.load(split, _source(data_dir))
    if not items:
        raise DataError(f"{task.name}: the {split} split has no rows; add some")
    return items


@functools.lru_cache(maxsize=16)
def _encoded(
    model: str, task: Task, split: Split, data_dir: str | None, limit: int | None, max_length: int
) -> list[Any]:
    return encode_items(task, draw(_items(task, split, data_dir), limit), _tokenizer(model), max_length)


@dataclass(frozen=True)
class _Asked:
    """Items that are measured on, as token ids too, and their digest."""

    items: list[Item]
    encoded: list[list[int]]
    digest: str


@functools.lru_cache(maxsize=16)
def _asked(
    model: str,
    task: Task,
    split: Split,
    data_dir: str | None,
    limit: int | None,
    skips: tuple[int, ...],
    max_length: int,
) -> _Asked:
    items = draw(_items(task, split, data_dir), limit, skips)
    return _Asked(items, measure.encode_questions(_tokenizer(model), task, items, max_length), _digest(items))


def _digest(items: Sequence[Item]) -> str:
    """Tell whether two measurements were made on the same items in the same order."""
    content = json.dumps([[item.prompt, item.target, item.choices] for item in items], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass
class _Reference:
    """The untuned base on held-out text: its loss, and its head, on the CPU until it is needed."""

    headed: PreTrainedModel
    windows: list[Example]
    pad: int
    batch_size: int
    device: torch.device
    bf16: bool
    loss: float = 0.0

    def forgetting(self, built: Built) -> float:
        """Return how much the loss rose, in nats per token; a classifier is read through the base's language-model head."""
        if arch.task_of(built.stock) == "causal-lm":
            return self.loss_of(built.model, built.stock) - self.loss
        self.headed.to(self.device)  # type: ignore[arg-type]
        risen = self.loss_of(built.model, self.headed, causal=False) - self.loss
        self.headed.to("cpu")  # type: ignore[arg-type]
        return risen

    def loss_of(self, model: Any, headed: PreTrainedModel, causal: bool = True) -> float:
        """Measure a model's hidden states through the head of another."""
        head = functools.partial(arch.logits, headed)
        with precision(self.device, self.bf16):
            return measure.token_loss(model, head, self.windows, self.pad, self.batch_size, causal)


@functools.lru_cache(maxsize=4)
def _reference(
    model: str, data_dir: str | None, rows: int, bf16: bool, batch_size: int, device: torch.device
) -> _Reference:
    tokenizer = _tokenizer(model)
    windows = measure.windows(
        held_out_text(_source(data_dir), rows),
        tokenizer,
        min(WINDOW, arch.context_of(_config(model)) or WINDOW),
    )
    base = stock_models.load_model(model, torch.bfloat16 if bf16 else torch.float32).to(device).eval()  # type: ignore[arg-type]
    reference = _Reference(base, windows, padding_id(tokenizer), batch_size, device, bf16)
    reference.loss = reference.loss_of(base, base)
    del arch.blocks_of(base)[:]  # embeddings and head are all that is needed from here on
    base.to("cpu")
    return reference
