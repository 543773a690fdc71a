"""Try changes of the method on validation data: each job is a training run with one change of the boundary.

    python recipes/method_search/search.py --model MODEL --jobs JOBS.jsonl --output ROWS.jsonl [--data-dir
    DATA] [--bf16]

A job is one line of JSON: {"name": ..., "task": ..., "method": "shadow" or another one of `shadowpeft
compare`, "learning_rate": ..., "alpha": ..., "backbone_learning_rate": ..., "model": one in place of --model,
"config": {settings of ShadowConfig}, "study": {settings of a study}, "change": {options of `Change`},
"rates": {part: factor}, "loss_weights": [at the first step, at the last], "detached": true to measure the
detached model, too, and for a task that is answered in words not the loss alone, "final": true to read the
test split as a study's final runs do}. Budgets, data, training and measuring are those of `shadowpeft
compare`.

Any number of these commands, on one GPU or several, may work on the same JOBS with the same --claims folder:
a job is run by the first that claims it.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from change import Change, change_adapter, loss_weights, rates

from shadowpeft.compare import run_cell
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study
from shadowpeft.compare.workers import attempt, silence


def run(job: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Train and measure one job; its row, with the job itself."""
    method = job.get("method", "shadow")
    given = {**settings, "model": job.get("model", settings["model"]), **job.get("study", {})}
    study = Study(
        tasks=job["task"], methods=method, output="-", overrides={method: job.get("config", {})}, **given
    )
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
    changes = (
        Change(**job.get("change", {}))
        if method in ("shadow", "shadow-explicit") and "change" in job
        else None
    )
    with changed(changes), rates(job.get("rates", {})), loss_weights(job.get("loss_weights")):
        rows = attempt(cell, study, run_both if job.get("detached") else run_cell.run_cell)
    return {
        "job": job,
        **rows[0],
        "also": [{name: row[name] for name in ("mode", "metrics", "correct")} for row in rows[1:]],
    }


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


def run_both(cell: Cell, study: Study) -> list[dict[str, Any]]:
    """Train as a search does, and measure attached and detached on validation rows in the task's own way."""
    plain = run_cell.CellRun.search

    def search(self: run_cell.CellRun) -> list[dict[str, Any]]:
        outcome = self.train_for(self.study.steps)
        records = []
        for mode, model in self.modes():
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


def unclaimed(jobs: Path, claims: Path) -> Iterator[dict[str, Any]]:
    """Give the jobs that no other process has claimed, also those that are added to the file meanwhile."""
    claims.mkdir(parents=True, exist_ok=True)
    tried: set[str] = set()
    while True:
        lines = [line for line in jobs.read_text().splitlines() if line.strip() and line not in tried]
        if not lines:
            return
        tried.add(lines[0])
        job = json.loads(lines[0])
        try:
            (claims / hashlib.sha256(lines[0].encode()).hexdigest()).touch(
                exist_ok=False
            )  # a name that every process gives the job
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
    jobs, output, claims = (settings.pop(name) for name in ("jobs", "output", "claims"))
    silence()
    for job in unclaimed(jobs, claims or output.with_suffix(".claims")):
        row = run(job, settings)
        with open(output, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{row['job']['name']} {row['model']} {row['task']}: {row['metric']} {row['value']} "
            f"{row['error'] or ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
