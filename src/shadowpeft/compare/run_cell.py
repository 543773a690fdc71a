"""One cell of a study from its base to its records: build, train, measure."""

import functools
import gc
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from shadowpeft import arch
from shadowpeft.compare import measure, tasks
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.cell_data import (
    draw,
    examples_of,
    items_of,
    length_limit,
    questions_of,
    tokenizer_of,
)
from shadowpeft.compare.examples import ClassCollator
from shadowpeft.compare.forgetting import Reference, reference_of
from shadowpeft.compare.methods import Built, build
from shadowpeft.compare.records import Record, identity
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Item, Split, Task
from shadowpeft.compare.training import Collate, Training, TrainingOutcome, precision, train
from shadowpeft.data.packing import Collator
from shadowpeft.data.tokenizers import padding_id
from shadowpeft.evaluation.calibration import calibration, negative_log_likelihood

TIMED_ITEMS, TIMED_TOKENS = 8, 32
WARM_UP_STEPS, TIMED_STEPS = 5, 20


def run_cell(cell: Cell, study: Study) -> list[Record]:
    """Train one method on one task and measure it.

    Args:
        cell: what to train; its stage says what is measured.
        study: the settings that all cells share.

    Returns:
        Records of the results, complete except for their provenance (study, versions, commit, device, time).

    Raises:
        UserError: a setting, a model or the data cannot be used.
        torch.OutOfMemoryError: the device is too small.
    """
    gc.collect()  # the Trainer of the last cell is a reference cycle that holds its model
    device = _device(study)
    reference = None
    # Before the cell's own model is built: the two together may not fit on the device.
    if cell.stage == "final" and study.forgetting_rows > 0:
        reference = reference_of(
            cell.model,
            study.data_dir,
            rows=study.forgetting_rows,
            bf16=study.bf16,
            batch_size=study.eval_batch_size,
            device=device,
        )
    task, tokenizer = tasks.find(cell.task), tokenizer_of(cell.model)
    set_seed(cell.seed)
    built = build(cell, study, task, pad_token_id=padding_id(tokenizer), device=device)
    built.model.eval()
    run = CellRun(
        cell=cell,
        study=study,
        task=task,
        tokenizer=tokenizer,
        device=device,
        built=built,
        max_length=length_limit(cell.model, study, task),
    )
    if cell.stage == "search":
        return run.search()
    if cell.stage == "final":
        return run.final(reference)
    return run.cost()


def _device(study: Study) -> torch.device:
    if study.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda")


@dataclass(kw_only=True)
class CellRun:
    """A cell whose model is built.

    Attributes:
        cell: the cell.
        study: the settings that all cells share.
        task: what it is trained on.
        tokenizer: the base's.
        device: where the model is.
        built: the model.
        max_length: tokens that a training row may have.
    """

    cell: Cell
    study: Study
    task: Task
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    built: Built
    max_length: int

    def search(self) -> list[Record]:
        """Train, and measure on the validation split; a task of generated answers by its loss."""
        outcome = self.train_for(self.study.steps)
        if self.task.kind == "generation":
            examples = self.examples("validation", self.study.validation_rows)
            loss = self.loss_of(self.built.model, self.built.stock, examples)
            measured = {"metric": "loss", "value": loss, "metrics": {"loss": loss}, "items": len(examples)}
        else:
            found = self.measure_on(self.built.model, self.task, "validation", self.study.validation_rows)
            measured = {name: found[name] for name in ("metric", "value", "metrics", "items")}
        return [self.record(outcome, "attached", "validation", **measured)]

    def final(self, reference: Reference | None) -> list[Record]:
        """Train, and measure on the test split of the task and of its partners, attached and detached."""
        outcome = self.train_for(self.study.steps)
        forgetting = {}
        if reference is not None:
            forgetting["attached"] = reference.forgetting(self.built)
        tested = [self.task]
        if self.study.ood:
            tested += map(tasks.find, self.task.partners)
        records = []
        for mode, model in self.modes():
            costs: Record = {"forgetting": forgetting.get(mode)}
            # With several workers other runs disturb the timing: the stage `cost` takes it, where none is in
            # the way.
            if self.study.workers == 1:
                items = items_of(self.task, "validation", self.study.data_dir)
                costs["ms_per_answer"] = self.time_answers(model, items)
            for task in tested:
                skips = self.study.skips_of(task.name)
                measured = self.measure_on(model, task, "test", limit=self.study.test_rows, skips=skips)
                records.append(self.record(outcome, mode, "test", task=task.name, **costs, **measured))
        return records

    def cost(self) -> list[Record]:
        """Time training steps and answers; nothing is scored, and no test row is read."""
        outcome = self.train_for(WARM_UP_STEPS + TIMED_STEPS, timed=True)
        step_ms = statistics.median(outcome.step_ms[WARM_UP_STEPS:]) if outcome.step_ms else None
        items = items_of(self.task, "validation", self.study.data_dir)
        return [
            self.record(
                outcome,
                mode,
                "none",
                metric="train_ms_per_step",
                value=step_ms,
                ms_per_answer=self.time_answers(model, items),
            )
            for mode, model in self.modes()
        ]

    def train_for(self, steps: int, timed: bool = False) -> TrainingOutcome:
        """Train the model; an untuned base is left as it is."""
        if not self.built.trainable(heads=True):
            return TrainingOutcome()
        pad = padding_id(self.tokenizer)
        collate: Collate = ClassCollator(pad) if self.task.kind == "classification" else Collator(pad)
        training = Training(
            steps=steps,
            batch_size=self.study.batch_size,
            learning_rate=self.cell.learning_rate,
            seed=self.cell.seed,
            device=self.device,
            bf16=self.study.bf16,
            timed=timed,
            backbone_learning_rate=self.cell.backbone_learning_rate,
            head_learning_rate=self.cell.head_learning_rate,
        )
        examples = self.examples("train", self.study.train_rows)
        return train(self.built.model, examples, collate=collate, training=training)

    def examples(self, split: Split, limit: int | None) -> list[Any]:
        """Return at most `limit` rows of a split as training examples."""
        return examples_of(
            self.cell.model,
            self.task,
            split,
            data_dir=self.study.data_dir,
            limit=limit,
            max_length=self.max_length,
        )

    def modes(self) -> list[tuple[str, Any]]:
        """Return the models to measure, each with the name of its mode."""
        attached = ("attached", self.built.model)
        if self.built.detach is None:
            return [attached]
        return [attached, ("detached", self.built.detach().eval())]

    def loss_of(self, model: Any, headed: Any, examples: Sequence[Any]) -> float:
        """Return a model's loss in nats per answer token, through the language-model head of `headed`."""
        head, pad = functools.partial(arch.logits, headed), padding_id(self.tokenizer)
        with precision(self.device, self.study.bf16):
            return measure.token_loss(
                model, head, examples, pad=pad, batch_size=self.study.eval_batch_size, causal=True
            )

    def measure_on(
        self, model: Any, task: Task, split: Split, limit: int | None, skips: tuple[int, ...] = ()
    ) -> Record:
        """Score a model's answers to a split; return the fields of a record that say how good they are."""
        questions = questions_of(
            self.cell.model,
            task,
            split,
            data_dir=self.study.data_dir,
            limit=limit,
            skips=skips,
            max_length=self.max_length,
        )
        items = questions.items
        with precision(self.device, self.study.bf16):
            given = measure.answer(
                model,
                self.tokenizer,
                task,
                items,
                batch_size=self.study.eval_batch_size,
                max_length=self.max_length,
                encoded=questions.encoded,
            )
        if given.cut:
            warnings.warn(
                f"{task.name}: {given.cut} of {len(items)} prompts of the {split} split leave no room for an "
                f"answer in the context of {self.cell.model} and lost their beginning; "
                "choose a model with a longer context",
                stacklevel=2,
            )
        scores, confidence, metrics = task.score(items, given.answers), None, {}
        if given.probabilities is not None:
            confidence = calibration(given.probabilities, scores.correct)
            targets = [item.target for item in items]
            metrics = {"nll": negative_log_likelihood(given.probabilities, targets)}
        metrics = {**scores.metrics, **metrics}
        return {
            "metric": task.metric, "value": metrics[task.metric], "metrics": metrics, "items": len(items),
            "correct": "".join(map(str, scores.correct)), "items_digest": questions.digest,
            "calibration": confidence, "prompts_cut": given.cut,
        }  # fmt: skip

    def time_answers(self, model: Any, items: Sequence[Item]) -> float:
        """Return the time of an answer to a single item, in milliseconds."""

        def ask(item: Item) -> None:
            measure.answer(
                model,
                self.tokenizer,
                self.task,
                [item],
                batch_size=1,
                max_length=self.max_length,
                most=TIMED_TOKENS,
            )

        with precision(self.device, self.study.bf16):
            return measure.ms_per_answer(ask, draw(items, TIMED_ITEMS), self.device)

    def record(self, outcome: TrainingOutcome, mode: str, split: str, **measured: Any) -> Record:
        """Return a record of the cell; its fields stand in the same order whatever was measured."""
        cell, built = self.cell, self.built
        speed = outcome.tokens / outcome.seconds if outcome.steps else None
        return {
            **identity(cell, "ok", None), "mode": mode, "rank": cell.rank, "seed": cell.seed,
            **cell.setting._asdict(), "split": split, "metric": None, "value": None, "metrics": {},
            "items": None, "correct": None, "items_digest": None, "calibration": None, "prompts_cut": None,
            "trainable": built.trainable(), "trainable_with_heads": built.trainable(heads=True),
            "steps": outcome.steps, "train_seconds": outcome.seconds, "train_tokens_per_second": speed,
            "peak_gb": outcome.peak_gb, "adapter_bytes": built.adapter_bytes(),
            "ms_per_answer": None, "forgetting": None, "train_loss": outcome.train_loss,
            "config": {**built.config, "max_length": self.max_length},
            **measured,
        }  # fmt: skip
