"""Time a method's training steps with nothing else on the device: seconds a step, and memory.

    python recipes/method_search/step_times.py --model MODEL --tasks gsm8k,clinc150 --output TIMES.jsonl
        [--data-dir DATA] [--encoded FOLDER] [--bf16]

Methods are those of `shadowpeft compare`, and `lora-chunked`: LoRA with our loss, which keeps no logits of
all tokens; it is timed where a task is answered in words, since a classifier's loss has few logits. After
some steps that warm up, the device is waited for once, at the end of all timed steps. The loss of the last
tenth of them is in the row, so that two ways to compute a loss can be compared.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kept import keep_encoded

from shadowpeft import arch
from shadowpeft.compare import run_cell, tasks, training
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study
from shadowpeft.compare.workers import _tidy, attempt, silence
from shadowpeft.losses.frozen_head import Head
from shadowpeft.losses.normalised import frozen_head_losses

RATES = {"lora": 3e-4, "shadow": 1e-3}
ALPHA = 0.6
CHUNKED = "lora-chunked"


@contextmanager
def timed(warm_up: int, steps: int) -> Iterator[None]:
    """Let a cell of a search train and nothing else: steps that are not timed, then steps that are."""
    plain = run_cell.CellRun.search

    def search(self: run_cell.CellRun) -> list[dict[str, Any]]:
        self.train_for(warm_up)
        outcome = self.train_for(steps)
        seconds = outcome.seconds / steps
        return [self.record(outcome, "attached", "none", metric="seconds_a_step", value=seconds)]

    run_cell.CellRun.search = search  # type: ignore[method-assign]
    try:
        yield
    finally:
        run_cell.CellRun.search = plain  # type: ignore[method-assign]


@contextmanager
def chunked_loss(wanted: bool) -> Iterator[None]:
    """Train a PEFT model, within the context, by a loss that keeps no logits, if that is wanted."""
    plain = training._Trainer.compute_loss

    def compute_loss(
        self: Any,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        base, given = model.get_base_model(), dict(inputs)
        labels_BT = given.pop("labels")
        with training.precision(self.args.device, self.computes_in_bf16):
            h_BTD = arch.decoder_of(base)(**given, use_cache=False).last_hidden_state
            (loss,) = frozen_head_losses(
                (h_BTD,), Head.of(base), labels_BT=labels_BT, shift_labels=None, num_items=num_items_in_batch
            )
        self.losses.append(loss.detach())
        return loss

    if wanted:
        training._Trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        training._Trainer.compute_loss = plain  # type: ignore[method-assign]


def methods_of(task: str) -> tuple[str, ...]:
    """List what is timed on a task."""
    words = tasks.find(task).kind == "generation"
    return ("lora", CHUNKED, "shadow") if words else ("lora", "shadow")


def time_one(task: str, method: str, steps: tuple[int, int], settings: dict[str, Any]) -> dict[str, Any]:
    """Time one method on one task; its row."""
    warm_up, count = steps
    name = method.split("-")[0]
    study = Study(tasks=task, methods=name, output="-", **settings)
    alpha = ALPHA if name == "shadow" else None
    cell = Cell(
        "search", study.model, task, name, study.budgets[0], seed=0, learning_rate=RATES[name], alpha=alpha
    )
    with timed(warm_up, count), chunked_loss(method == CHUNKED):
        (row,) = attempt(cell, study, run_cell.run_cell)
    kept = ("status", "error", "value", "trainable", "steps", "train_loss", "peak_gb")
    return {"model": study.model, "task": task, "method": method, **{field: row.get(field) for field in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag in ("--model", "--tasks"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--encoded", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--timed", type=int, default=60)
    for flag, default in (("--batch-size", 16), ("--max-length", 256)):
        parser.add_argument(flag, type=int, default=default)
    settings = vars(parser.parse_args())
    names, output, encoded = (settings.pop(name) for name in ("tasks", "output", "encoded"))
    steps = settings.pop("warm_up"), settings.pop("timed")
    silence()
    if encoded is not None:
        keep_encoded(encoded)
    for task in names.split(","):
        for method in methods_of(task):
            row = time_one(task, method, steps, settings)
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{row['model']} {task} {method}: {row['value']} s a step {row['error'] or ''}", flush=True)
            _tidy()


if __name__ == "__main__":
    main()
