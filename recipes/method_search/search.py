"""Try changes of the method on validation data: each job is a training run with one change of the boundary.

    python recipes/method_search/search.py --model MODEL --jobs JOBS.jsonl --output ROWS.jsonl [--data-dir
    DATA] [--bf16]

A job is one line of JSON: {"name": ..., "task": ..., "method": "shadow" or another one of `shadowpeft
compare`, "learning_rate": ..., "alpha": ..., "backbone_learning_rate": ..., "model": one in place of --model,
"config": {settings of ShadowConfig}, "study": {settings of a study}, "change": {options of `Change`},
"rates": {part: factor}, "loss_weights": [at the first step, at the last], "rows": how many rows to train on,
drawn by the seed, "detached": true to measure the detached model, too, and for a task that is answered in
words not the loss alone, "answered": true for the words without the detached model, "final": true to read the
test split as a study's final runs do}. Budgets,
data, training and measuring are those of `shadowpeft compare`.

Any number of these commands, on one GPU or several, may work on the same JOBS with the same --claims folder:
a job is run by the first that claims it. With --until TIME, in seconds since 1970, they wait for jobs that
are added to the file, and begin none after that time. --encoded FOLDER keeps the encoded data, so that only
the first process has to encode it. --answers FOLDER keeps what classifiers answer to each row, one file a
job. `rates_used` in a row says how many weights were trained at which peak rate.
"""

import argparse
import functools
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from change import Change, change_adapter
from kept import keep_encoded, kept_answers
from rates import loss_weights, rates
from row_draws import rows_drawn

from shadowpeft.compare import run_cell
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.checks import check_data
from shadowpeft.compare.study import Study
from shadowpeft.compare.workers import _tidy, attempt, silence


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train and measure one job; its row, with the job itself."""
    method = job.get("method", "shadow")
    given = {**settings, "model": job.get("model", settings["model"]), **job.get("study", {})}
    study = Study(
        tasks=job["task"], methods=method, output="-", overrides={method: job.get("config", {})}, **given
    )
    refuse_wrong_tokens(study.model, study.tasks, study.data_dir)
    cell = Cell(
        stage="final" if job.get("final") else "search",
        model=study.model,
        task=job["task"],
        method=method,
        rank=study.budgets[0],
        seed=job.get("seed", 0),
        learning_rate=job["learning_rate"],
        alpha=job.get("alpha"),
        backbone_learning_rate=job.get("backbone_learning_rate"),
    )
    changes = None
    if method in ("shadow", "shadow-explicit", "shadow-frozen") and "change" in job:
        changes = Change(**job["change"])
    work: Callable[[Cell, Study], list[dict[str, Any]]] = run_cell.run_cell
    if job.get("detached"):
        work = run_both
    elif job.get("answered"):
        work = functools.partial(run_both, modes=("attached",))
    with (
        changed(changes),
        rates(job.get("rates", {})) as used,
        loss_weights(job.get("loss_weights")),
        rows_drawn(job.get("rows")) as drawn,
    ):
        rows = attempt(cell, study, work)
    also = [{name: row[name] for name in ("mode", "metrics", "correct")} for row in rows[1:]]
    return {"job": job, **rows[0], "rates_used": used, "drawn": drawn, "also": also}


@functools.cache
def refuse_wrong_tokens(model: str, task: str, data_dir: str | None) -> None:
    """Stop where a tokenizer was converted wrongly: losses on its ids look like losses.

    Raises:
        SystemExit: it makes about as many tokens as there are characters.
    """
    study = Study(model, task, "-", methods="base", data_dir=data_dir, ood=False, forgetting_rows=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?s).*converted wrongly")
        try:
            check_data(study)
        except UserWarning as error:
            raise SystemExit(str(error)) from error


@contextmanager
def changed(how: Change | None) -> Iterator[None]:
    """Build shadows with the change while the context lasts."""
    plain = run_cell.build
    if how is not None:
        run_cell.build = lambda *given, **named: change_adapter(plain(*given, **named), how)
    try:
        yield
    finally:
        run_cell.build = plain


def run_both(
    cell: Cell, study: Study, modes: Sequence[str] = ("attached", "detached")
) -> list[dict[str, Any]]:
    """Train as a search does, and measure attached and detached on validation rows in the task's own way."""
    plain = run_cell.CellRun.search

    def search(self: run_cell.CellRun) -> list[dict[str, Any]]:
        outcome = self.train_for(self.study.steps)
        records = []
        for mode, model in self.modes():
            if mode not in modes:
                continue
            measured = self.measure_on(model, self.task, "validation", self.study.validation_rows)
            if self.task.kind == "generation":
                examples = self.examples("validation", self.study.validation_rows)
                headed = model if mode == "detached" else self.built.stock
                measured["metrics"]["loss"] = self.loss_of(model, headed, examples)
            records.append(self.record(outcome, mode, "validation", **measured))
        return records

    run_cell.CellRun.search = search  # type: ignore[method-assign]
    try:
        return run_cell.run_cell(cell, study)
    finally:
        run_cell.CellRun.search = plain  # type: ignore[method-assign]


def name_of(job: dict[str, Any]) -> str:
    """Return a name that every process gives the job."""
    return hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]


def unclaimed(jobs: Path, claims: Path, until: float | None = None) -> Iterator[dict[str, Any]]:
    """Yield the jobs that no other process has claimed, also those that are added to the file meanwhile.

    Args:
        jobs: the file.
        claims: the folder that all processes share.
        until: wait for new jobs until this time, and yield none after it; `None` to end with the file.
    """
    claims.mkdir(parents=True, exist_ok=True)
    tried: set[str] = set()
    while until is None or time.time() < until:
        lines = [
            line
            for line in jobs.read_text(encoding="utf-8").splitlines()
            if line.strip() and line not in tried
        ]
        if not lines and until is None:
            return
        if not lines:
            time.sleep(0.5)
            continue
        tried.add(lines[0])
        job = json.loads(lines[0])
        try:
            (claims / name_of(job)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield job


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag in ("--jobs", "--output"):
        parser.add_argument(flag, required=True, type=Path)
    parser.add_argument("--claims", type=Path, help="by default OUTPUT.claims")
    parser.add_argument("--until", type=float)
    parser.add_argument("--encoded", type=Path)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--data-dir")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--bf16", action="store_true")
    for flag, default in (
        ("--steps", 150),
        ("--batch-size", 16),
        ("--max-length", 192),
        ("--validation-rows", 1000),
        ("--eval-batch-size", 64),
    ):
        parser.add_argument(flag, type=int, default=default)
    settings = vars(parser.parse_args())
    if settings["bf16"] and settings["device"] == "auto" and not torch.cuda.is_available():
        parser.error("--bf16 is for a GPU, and torch finds none; leave it out to run on the processor")
    jobs, output, claims = (settings.pop(name) for name in ("jobs", "output", "claims"))
    until, encoded, answers = (settings.pop(name) for name in ("until", "encoded", "answers"))
    silence()
    if encoded is not None:
        keep_encoded(encoded)
    for job in unclaimed(jobs, claims or output.with_suffix(".claims"), until):
        began = time.time()
        with kept_answers(answers and answers / f"{name_of(job)}.npz"):
            row = run(job, settings)
        row = {**row, "name": name_of(job), "began": began, "seconds": time.time() - began}
        with open(output, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        where = f"{job['name']} {row['model']} {row['task']}"
        print(
            f"{where}: {row['metric']} {row['value']} in {row['seconds']:.0f} s {row['error'] or ''}",
            flush=True,
        )
        _tidy()


if __name__ == "__main__":
    main()
