"""Write the jobs of the search for the head's own learning rate, stage by stage, from the rows there are.

    python recipes/method_search/head_rate.py --rows "rows.*.jsonl" --jobs jobs.jsonl [--until TIME]

Each call adds to JOBS what the rows allow. With --until TIME, in seconds since 1970, it goes on doing so,
while `search.py --until TIME` works on the file. A model begins when its folder holds a file READY. All
choices are by validation nll, averaged over the six pairs of model and task: on one seed in the grid and the
rounds after it, then on three seeds.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from planning import Ended, Job, command_line, read, repeat, with_tries

MODELS = ("models/gemma-3-270m", "models/qwen2.5-coder-0.5b")
TASKS = ("amazon5", "newsgroups20", "clinc150")
PAIRS = [(model, task) for model in MODELS for task in TASKS]
FIRST, MORE = 1000, (1001, 1002)
SEARCHED = [FIRST, *MORE]
ALPHA = 0.6
HEADS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BODIES = {"lora": (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3), "shadow": (2e-4, 5e-4, 1e-3, 2e-3, 3e-3)}
GRID = {"lora": (3e-4, 5e-4, 1e-3), "shadow": (5e-4, 1e-3, 2e-3)}
GRID_HEADS = (3e-3, 1e-2)
COUPLED = {"lora": 5e-4, "shadow": 2e-3}
OTHER_COUPLED = {"lora": (1e-3, 3e-4), "shadow": (1e-3, 3e-3)}
ROUNDS, STEPS_A_ROUND = 2, 2
# What the shadow's state is worth: a boundary that does not read it, the same with the whole budget in r,
# and a state that begins as a mean of embeddings.
ARMS: dict[str, dict[str, Any]] = {
    "blind": {"change": {"reads_shadow": False}},
    "whole": {"change": {"reads_shadow": False, "whole": True}, "config": {"shadow_loss_weight": 0.0}},
    "mean": {"change": {"backbone": "mean"}},
}


class Rates(NamedTuple):
    """A setting of a method.

    Attributes:
        method: lora or shadow.
        body: rate of all but the head.
        head: rate of the head; `None` if it is coupled to the body's.
    """

    method: str
    body: float
    head: float | None = None

    @property
    def name(self) -> str:
        """The name of its jobs."""
        if self.head is None:
            return f"{self.method} {self.body:g}"
        return f"{self.method} {self.body:g}/{self.head:g}"


COUPLED_RATES = [Rates(method, body) for method, body in COUPLED.items()]


def job(rates: Rates, pair: tuple[str, str], seed: int, *, arm: str = "", **more: Any) -> Job:
    """Return the job of a setting on a pair of model and task from a seed."""
    model, task = pair
    made: Job = {"name": f"{rates.name} {arm}".strip(), "task": task, "model": model, "method": rates.method}
    made |= {"learning_rate": rates.body, "seed": seed}
    if task != "gsm8k":
        made["detached"] = True
    if rates.method == "shadow":
        made["alpha"] = ALPHA
    if rates.head is not None:
        made["rates"] = {"head": rates.head / rates.body}
    return made | more


def on_all(rates: Sequence[Rates], seeds: Iterable[int], arm: str = "", **more: Any) -> list[Job]:
    """Return the jobs of settings on all pairs."""
    return [job(one, pair, seed, arm=arm, **more) for seed in seeds for pair in PAIRS for one in rates]


def arms_of(rates: Rates, seeds: Iterable[int], arms: Iterable[str]) -> list[Job]:
    """Return the jobs of the arms of a setting on all pairs, one seed after another."""
    return [one for seed in seeds for arm in arms for one in on_all([rates], [seed], arm, **ARMS[arm])]


def gsm8k(seed: int) -> list[Job]:
    """Return the jobs of the task without a fresh head: the shadow with its default rate, and its arms."""
    rates = Rates("shadow", COUPLED["shadow"])
    arms = {"": {}, **ARMS}
    return [job(rates, (model, "gsm8k"), seed, arm=arm, **arms[arm]) for model in MODELS for arm in arms]


def grid() -> list[Rates]:
    """List the settings of the first stage: the coupled ones, then both methods in turn."""
    heads = [[Rates(method, body, head) for body in GRID[method] for head in GRID_HEADS] for method in GRID]
    return [*COUPLED_RATES, *(one for two in zip(*heads, strict=True) for one in two)]


class Measured(Ended):
    """Validation nll of each setting on each pair and seed."""

    def has(self, jobs: Iterable[Job]) -> bool:
        """Return whether all jobs have ended, or have failed too often to be tried again."""
        return all(map(self.is_over, jobs))

    def mean(self, rates: Rates, seeds: Sequence[int]) -> float:
        """Average a setting's nll over all pairs and the seeds; infinite where one is missing."""
        mean = self.mean_of([(rates.name, *pair, seed) for pair in PAIRS for seed in seeds])
        return float("inf") if mean is None else mean

    def ranked(self, rates: Iterable[Rates], method: str, seeds: Sequence[int]) -> list[Rates]:
        """Sort a method's settings with a rate for the head, the best first."""
        own = [one for one in rates if one.method == method and one.head is not None]
        return sorted(own, key=lambda one: self.mean(one, seeds))


def neighbours(best: Rates) -> list[Rates]:
    """List the settings one step from another one: of the head, of the body, then of both."""
    assert best.head is not None
    heads = _beside(HEADS, best.head)[::-1]
    bodies = _beside(BODIES[best.method], best.body)
    return [
        *(best._replace(head=head) for head in heads),
        *(best._replace(body=body) for body in bodies),
        *(best._replace(body=body, head=head) for body in bodies for head in heads),
    ]


def _beside(values: Sequence[float], value: float) -> list[float]:
    at = values.index(value)
    return [values[i] for i in (at - 1, at + 1) if 0 <= i < len(values)]


def stages(measured: Measured) -> Iterator[tuple[str, list[Job]]]:
    """Yield the stages as far as the rows allow; each begins when those it depends on have ended.

    The stages `coupled` and `gsm8k` depend on none: they keep the GPUs busy until the last runs of the stage
    before have ended.
    """
    tried = grid()
    jobs = [job(one, pair, FIRST) for pair in PAIRS for one in tried]
    yield "grid", jobs
    others = [Rates(method, body) for method in OTHER_COUPLED for body in OTHER_COUPLED[method]]
    yield "coupled", on_all(others, [FIRST])
    for number in range(ROUNDS):
        if not measured.has(jobs):
            return
        new = [one for method in GRID for one in next_steps(measured, tried, method)]
        tried += new
        jobs = on_all(new, [FIRST])
        yield f"round {number + 1}", jobs
        yield f"gsm8k {number + 1}", gsm8k(SEARCHED[number])
    if not measured.has(jobs):
        return
    finalists = [one for method in GRID for one in measured.ranked(tried, method, [FIRST])[:2]]
    jobs = on_all([*finalists, *COUPLED_RATES], MORE)
    yield "seeds", jobs
    yield "gsm8k 3", gsm8k(MORE[-1])
    if not measured.has(jobs):
        return
    lora, shadow = (measured.ranked(finalists, method, SEARCHED)[0] for method in GRID)
    yield "arms", arms_of(shadow, SEARCHED, ARMS)
    yield "half", on_all([lora], SEARCHED, "half", study={"ranks": "8"})
    for seed in (1003, 1004):
        best = on_all([lora, shadow, *COUPLED_RATES], [seed])
        yield f"seed {seed}", [*best, *arms_of(shadow, [seed], ("blind", "whole"))]
    yield "seed 1005", on_all([lora, shadow, *COUPLED_RATES], [1005])


def next_steps(measured: Measured, tried: Sequence[Rates], method: str) -> list[Rates]:
    """List the untried settings that are nearest to a method's best ones."""
    steps = (near for one in measured.ranked(tried, method, [FIRST]) for near in neighbours(one))
    return list(dict.fromkeys(near for near in steps if near not in tried))[:STEPS_A_ROUND]


def add(given: argparse.Namespace) -> None:
    """Add to the file the jobs that the rows allow and that are not in it, failed ones once more."""
    jobs, measured = given.jobs, Measured(read(given.rows))
    known = set(jobs.read_text(encoding="utf-8").splitlines()) if jobs.exists() else set()
    for stage, wanted in stages(measured):
        tries = with_tries(wanted, measured)
        ready = (one for one in tries if given.any_model or (Path(one["model"]) / "READY").exists())
        new = [line for line in map(json.dumps, ready) if line not in known]
        if not new:
            continue
        with jobs.open("a", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in new)
        known.update(new)
        print(f"{time.time():.0f} {stage}: {len(new)} jobs", flush=True)


if __name__ == "__main__":
    repeat(command_line(__doc__).parse_args(), add)
