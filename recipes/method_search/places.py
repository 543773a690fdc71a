"""Where few rows and robustness are measured: models, tasks and each method's rates there."""

import argparse
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from paired_runs import read_rows
from planning import Ended, Job, Pair, command_line, repeat, write

MATHS = "gsm8k"
METHODS = ("lora", "shadow")
# The package's default.
ALPHA = 0.6


class Place(NamedTuple):
    """Models and tasks, and the rates of each method there.

    Attributes:
        pairs: models and tasks that are classified.
        maths: models and tasks that are not.
        steps: of every run.
        tuned: rates of body and head that earlier records found best, by method.
        factors: what few rows try of these rates.
        grid: one rate for body and head, over a factor of ten, by method.
        default: the rate of those who do not search, by method.
        more: how many seeds follow the first one in the comparison of few rows.
        commonest: share of the commonest answer among the validation rows, by task.
    """

    pairs: tuple[Pair, ...]
    maths: tuple[Pair, ...]
    steps: int
    tuned: dict[str, tuple[float, float]]
    factors: tuple[float, ...]
    grid: dict[str, tuple[float, ...]]
    default: dict[str, float]
    more: int
    commonest: dict[str, float]


_MODELS = ("models/gemma-3-270m", "models/qwen2.5-coder-0.5b")
_EMBEDDED = "src/shadowpeft/embedded/model"
# LoRA's is customary in guides of language models; the shadow's is that of `shadowpeft train`.
_DEFAULT = {"lora": 2e-4, "shadow": 1e-3}
PLACES = {
    "gpu": Place(
        pairs=tuple((model, task) for model in _MODELS for task in ("newsgroups20", "clinc150", "amazon5")),
        maths=tuple((model, MATHS) for model in _MODELS),
        steps=150,
        tuned={"lora": (3e-4, 3e-3), "shadow": (1e-3, 3e-3)},
        factors=(2, 1, 0.5),
        grid={"lora": (1e-4, 2e-4, 3e-4, 5e-4, 1e-3), "shadow": (5e-4, 1e-3, 2e-3, 3e-3, 5e-3)},
        default=_DEFAULT,
        more=6,
        commonest={"newsgroups20": 0.055, "clinc150": 0.031, "amazon5": 0.206},
    ),
    "embedded": Place(
        pairs=((_EMBEDDED, "clinc150"),),
        maths=(),
        steps=100,
        tuned={"lora": (3e-3, 3e-3), "shadow": (3e-3, 3e-3)},
        factors=(2, 1),
        grid=dict.fromkeys(METHODS, (1e-3, 3e-3, 1e-2)),
        default=_DEFAULT,
        more=2,
        # The subset of clinc150 that ships in the package.
        commonest={"clinc150": 0.143},
    ),
}


def keep_planning(doc: str | None, plan: Callable[[Place, Ended], list[Job]]) -> None:
    """Write the jobs of a planner's command line, as often as it says."""
    parser = command_line(doc)
    parser.add_argument("--place", choices=list(PLACES), default="gpu")
    given = parser.parse_args()

    def planned(rows: list[dict[str, Any]]) -> tuple[list[Job], Ended]:
        ended = Ended(rows)
        return plan(PLACES[given.place], ended), ended

    repeat(given, functools.partial(write, plan=planned))


def rows_and_place(doc: str | None) -> tuple[list[dict[str, Any]], Place]:
    """Return what a report's command line names: the rows of all files, and where they were measured."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--place", choices=list(PLACES), default="gpu")
    given = parser.parse_args()
    return [row for path in given.rows for row in read_rows(path)], PLACES[given.place]


def job(place: Place, pair: Pair, method: str, *, body: float, head: float | None, seed: int) -> Job:
    """Return the job of a method at some rates on a pair of model and task from a seed.

    Args:
        place: where.
        pair: model and task.
        method: lora or shadow.
        body: rate of all but the head.
        head: the head's; `None` for the body's, and where no head is trained.
        seed: of the run.
    """
    model, task = pair
    made: Job = {"name": f"{method} {body:g}", "task": task, "model": model, "method": method}
    made |= {"learning_rate": body, "seed": seed, "study": {"steps": place.steps}}
    if method == "shadow":
        made["alpha"] = ALPHA
    if task != MATHS:
        # Keeps which items were answered right.
        made["answered"] = True
    if head is not None:
        made |= {"name": f"{method} {body:g}/{head:g}", "rates": {"head": head / body}}
    return made


def once(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs without those that stand further up already."""
    seen: list[dict[str, Any]] = []
    for one in jobs:
        if one not in seen:
            seen.append(one)
    return seen
