"""What the planners of the search share: which runs have ended, runs to try again, and the file of jobs."""

import argparse
import glob
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shadowpeft.compare.measure import _DIVERGED

TRIES = 3
# Seconds of a step while others share the GPU, until rows say it; and what a run takes besides.
PACE = {"lora": 0.27, "shadow": 0.19}
BESIDES = 25.0

Job = dict[str, Any]
Pair = tuple[str, str]
Key = tuple[str, str, str, int]


class Ended:
    """Which runs have ended, from their rows.

    A run that was out of memory or crashed is no result, and so never the worst one: it is tried again. One
    that diverged is a result.

    Attributes:
        lost: nats an item, of gsm8k nats a token, by run; infinite for a run that diverged.
        failures: how often a run failed, by run.
        pace: seconds a step by method.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.lost: dict[Key, float] = {}
        self.failures: dict[Key, int] = {}
        self.pace = dict(PACE)
        long: dict[str, list[float]] = {method: [] for method in PACE}
        for row in rows:
            made, key = row["job"], key_of(row["job"])
            if has_diverged(row):
                self.lost[key] = math.inf
                continue
            if row["status"] != "ok":
                self.failures[key] = self.failures.get(key, 0) + 1
                continue
            self.lost[key] = row["metrics"].get("nll", row["metrics"].get("loss"))
            steps = made.get("study", {}).get("steps", 0)
            if steps >= 600 and made["method"] in long:
                long[made["method"]].append(row["train_seconds"] / steps)
        self.pace |= {method: sum(paces) / len(paces) for method, paces in long.items() if paces}

    def mean_of(self, keys: Sequence[Key]) -> float | None:
        """Average what runs lost; `None` if one has not ended."""
        if not all(key in self.lost for key in keys):
            return None
        return sum(self.lost[key] for key in keys) / len(keys)

    def is_over(self, one: Job) -> bool:
        """Return whether a job has ended, or has failed as often as it may be tried."""
        key = key_of(one)
        return key in self.lost or self.failures.get(key, 0) >= TRIES

    def seconds(self, one: Job) -> float:
        """Return what a job will take."""
        return float(1.1 * self.pace[one["method"]] * one["study"]["steps"] + BESIDES)


def has_diverged(row: dict[str, Any]) -> bool:
    """Return whether a run's model computes no numbers, which `search.py` records as a crash of that name."""
    return row["status"] == "crashed" and _DIVERGED in (row["error"] or "")


def key_of(one: Job) -> Key:
    """Return the setting, pair and seed of a job; those of another try of it are the same."""
    return one["name"], one["model"], one["task"], one["seed"]


def with_tries(jobs: Iterable[Job], ended: Ended) -> list[Job]:
    """Return the jobs, those that failed once more at their places."""
    tries = []
    for one in jobs:
        again = range(1, min(TRIES, ended.failures.get(key_of(one), 0) + 1))
        tries += [one, *(one | {"again": at} for at in again)]
    return tries


Choice = TypeVar("Choice")


def lowest(means: dict[Choice, float | None]) -> Choice | None:
    """Return the choice that lost least; `None` until all that are tried have ended."""
    if None in means.values():
        return None
    return min(means, key=lambda one: means[one] or 0.0)


def fits(one: Job, ended: Ended, until: float | None, now: float) -> bool:
    """Return whether a job that began now would end in time, or has ended."""
    return until is None or key_of(one) in ended.lost or now + ended.seconds(one) < until


def read(pattern: str) -> list[dict[str, Any]]:
    """Read the rows of all processes; a line that is still being written is left for the next time."""
    texts = [Path(path).read_text(encoding="utf-8") for path in sorted(glob.glob(pattern))]
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def replace(jobs: Path, lines: Sequence[str]) -> None:
    """Write the file of jobs anew, if there are others than before."""
    text = "".join(line + "\n" for line in lines)
    if jobs.exists() and jobs.read_text(encoding="utf-8") == text:
        return
    # Under another name first: a process must not read half a file.
    new = jobs.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, jobs)
    print(f"{time.time():.0f}: {len(lines)} jobs", flush=True)


def write(given: argparse.Namespace, plan: Callable[[list[dict[str, Any]]], tuple[list[Job], Ended]]) -> None:
    """Write the file of jobs anew: those of a plan whose model is there and that would end in time.

    Args:
        given: the command line.
        plan: returns all jobs that rows allow, the most telling first, and what has ended.
    """
    jobs, ended = plan(read(given.rows))
    ready = (one for one in jobs if given.any_model or (Path(one["model"]) / "READY").exists())
    now = time.time()
    replace(given.jobs, [json.dumps(one) for one in ready if fits(one, ended, given.until, now)])


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all planners have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--jobs", required=True, type=Path)
    parser.add_argument("--until", type=float)
    parser.add_argument(
        "--any-model", action="store_true", help="begin jobs of models without a file READY, too"
    )
    return parser


def repeat(given: argparse.Namespace, update: Callable[[argparse.Namespace], None]) -> None:
    """Write the jobs, and with --until again and again as rows come in."""
    update(given)
    while given.until is not None and time.time() < given.until:
        time.sleep(1)
        update(given)
