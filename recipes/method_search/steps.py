"""Write the jobs that compare LoRA with the shadow at 50, 150, 600 and 2,000 steps, from the rows there are.

    python recipes/method_search/steps.py --rows "rows.*.jsonl" --jobs jobs.jsonl [--until TIME]

Each call writes to JOBS what the rows allow, the most telling first. With --until TIME, in seconds since
1970, it goes on doing so, while `search.py --until TIME` works on the file, and leaves out what would not end
by then. A job waits until its model's folder holds a file READY. Written down before any run:

**What is compared.** LoRA at rank 16 and `normed` with as many trained parameters, gemma-3-270m and
qwen2.5-coder-0.5b on clinc150, amazon5, newsgroups20 and gsm8k. Each length is a run of its own, with a
schedule of its own. Validation rows only; gsm8k by its loss.

**Settings.** Rates are the best ones at 150 steps (`BEST`; of gsm8k the better of two for LoRA, the default
for the shadow) times a factor (`FACTORS`), for body and head alike, both methods with as many factors. At 600
steps the classifications take 0.5, which beat 1 for both methods in results/quality/head_rate (seed 1000,
mean nll of the six), and at 2,000 0.25, which continues one over the square root of the steps. At 50 steps
they try 1 and 2. gsm8k tries 1 and 0.5, each model for itself, and takes 0.5 at 2,000. What is tried runs
from the first seed; a method's factor is the one with the lowest nll there, averaged over the six
classifications.

A first attempt lost its machine, idle for half a minute, after 14 runs whose log lines alone are left: gemma,
600 steps, seed 1000. It was to try 0.25 at 600 steps, too. There 0.25 was 1.2 points (clinc150) and 1.7
(newsgroups20) behind 0.5 with LoRA, 0.2 behind and 0.7 ahead with the shadow, and on gsm8k 1 was the best of
three for both. So 0.25 is left out; the plan is otherwise the same, but shorter.

**Primary result.** 600 steps, shadow minus LoRA, six classifications, seeds 1001 and 1002, which chose
nothing. One of them leads if the 95 % interval of the points over items and seeds excludes zero; if not, they
are level. Secondary: the same in nll; gsm8k by the sign of its loss in every run; the other lengths; the
change from 150 steps against twice its standard error. 2,000 steps have one seed and three tasks on one
model: an indication. A run that was out of memory is no result: it is tried again, twice at most. One that
diverged (nll not a number) counts as worse than all others.

**Equal seconds.** `step_times.py` times each method alone. Seconds of a run are its steps times the seconds a
step. What LoRA has after the shadow's seconds, and the other way round, is interpolated along the logarithm
of seconds between lengths that were run, never beyond them. Seconds of runs that share a GPU are not used.

**Cost.** In the first attempt eight processes on each of two GPUs took 156 to 168 s for a run of 600 steps,
evaluation included, whatever the method: 58 steps a second together. 2,000 steps are 3.3 times that, 520 s.
In this order: 2,000 steps on gemma, 6 runs, 12,000 steps, first since they would not end otherwise; 600
steps, 36 runs, 21,600 steps; 50 steps, 48 runs, 2,400 steps; then 150 steps, 36 runs, 5,400 steps, as far as
they come. Some 660 s of two GPUs without the last.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from planning import Ended, Job, Pair, command_line, lowest, repeat, with_tries, write

GEMMA, QWEN = "models/gemma-3-270m", "models/qwen2.5-coder-0.5b"
MODELS = (GEMMA, QWEN)
CLASSIFIED = ("newsgroups20", "clinc150", "amazon5")
MATHS = "gsm8k"
TASKS = ("newsgroups20", MATHS, "clinc150", "amazon5")
METHODS = ("lora", "shadow")
ALPHA = 0.6
FIRST, MORE = 1001, (1002,)
# Rates at 150 steps: of the body, and of the head where it is trained.
BEST: dict[str, dict[str, tuple[float, float | None]]] = {
    "classified": {"lora": (3e-4, 3e-3), "shadow": (1e-3, 3e-3)},
    "maths": {"lora": (1e-3, None), "shadow": (2e-3, None)},
}
# What is tried from the first seed.
FACTORS: dict[str, dict[int, tuple[float, ...]]] = {
    "classified": {50: (1, 2), 150: (1,), 600: (0.5,), 2000: (0.25,)},
    "maths": {50: (1, 2), 150: (1, 0.5), 600: (1, 0.5), 2000: (0.5,)},
}
# The tasks of the longest runs.
LONGEST = ("newsgroups20", "clinc150", MATHS)
LENGTHS = (50, 150, 600, 2000)


class Setting(NamedTuple):
    """What a method is trained with.

    Attributes:
        method: lora or shadow.
        steps: the length of the run.
        factor: its rates, in those that are best at 150 steps.
    """

    method: str
    steps: int
    factor: float

    def rates(self, task: str) -> tuple[float, float | None]:
        """Return the rates of body and head on a task; there is no head to train on gsm8k."""
        body, head = BEST[kind_of(task)][self.method]
        return body * self.factor, head and head * self.factor

    def name(self, task: str) -> str:
        """Return the name of its jobs on a task: method, rates, steps."""
        body, head = self.rates(task)
        rates = f"{body:g}" if head is None else f"{body:g}/{head:g}"
        return f"{self.method} {rates} {self.steps}"


def kind_of(task: str) -> str:
    """Return whether a task is classified or maths."""
    return "maths" if task == MATHS else "classified"


def job(setting: Setting, pair: Pair, seed: int) -> Job:
    """Return the job of a setting on a pair of model and task from a seed."""
    model, task = pair
    body, head = setting.rates(task)
    made: Job = {"name": setting.name(task), "task": task, "model": model, "method": setting.method}
    made |= {"learning_rate": body, "seed": seed, "study": {"steps": setting.steps}}
    if setting.method == "shadow":
        made["alpha"] = ALPHA
    if head is not None:
        # `answered` keeps which items were answered right.
        made |= {"rates": {"head": head / body}, "answered": True}
    return made


def tried(method: str, steps: int, task: str) -> list[Setting]:
    """List a method's settings of a length on a task."""
    return [Setting(method, steps, factor) for factor in FACTORS[kind_of(task)][steps]]


class Measured(Ended):
    """What the rows say of settings."""

    def mean(self, setting: Setting, pairs: Sequence[Pair]) -> float | None:
        """Average a setting's loss from the first seed over pairs; `None` if a run has not ended."""
        return self.mean_of([(setting.name(task), model, task, FIRST) for model, task in pairs])

    def best(self, method: str, steps: int, pair: Pair) -> Setting | None:
        """Return a method's setting of a length for a pair; `None` until all that is tried has ended."""
        candidates = tried(method, steps, pair[1])
        if len(candidates) == 1:
            return candidates[0]
        pairs = chosen_together(pair)
        return lowest({setting: self.mean(setting, pairs) for setting in candidates})


def chosen_together(pair: Pair) -> list[Pair]:
    """List the pairs that share a setting with a pair."""
    if pair[1] == MATHS:
        return [pair]
    return [(model, task) for model in MODELS for task in CLASSIFIED]


def searched(steps: int, models: Sequence[str] = MODELS, tasks: Sequence[str] = TASKS) -> list[Job]:
    """Return the jobs of all settings of a length from the first seed, both methods of a factor together."""
    jobs = []
    for model in models:
        for task in tasks:
            both = [tried(method, steps, task) for method in METHODS]
            jobs += [job(one, (model, task), FIRST) for two in zip(*both, strict=True) for one in two]
    return jobs


def repeated(measured: Measured, steps: int, tasks: Sequence[str] = TASKS) -> list[Job]:
    """Return the jobs of the chosen settings of a length from other seeds, as far as they are chosen."""
    jobs = []
    for seed in MORE:
        for model in MODELS:
            for task in tasks:
                both = [measured.best(method, steps, (model, task)) for method in METHODS]
                jobs += [job(one, (model, task), seed) for one in both if one is not None]
    return jobs


def plan(measured: Measured) -> list[Job]:
    """List all jobs that the rows allow, the most telling first, a job that failed once more at its place."""
    # The method that takes longer begins first.
    jobs = sorted(searched(2000, [GEMMA], LONGEST), key=lambda one: METHODS.index(one["method"]))
    jobs += searched(600, [GEMMA])
    jobs += searched(600, [QWEN])
    jobs += repeated(measured, 600)
    jobs += searched(50) + repeated(measured, 50)
    jobs += searched(150) + repeated(measured, 150)
    return with_tries(jobs, measured)


def planned(rows: Sequence[dict[str, Any]]) -> tuple[list[Job], Measured]:
    """Return all jobs that the rows allow, and what has ended."""
    measured = Measured(rows)
    return plan(measured), measured


if __name__ == "__main__":
    repeat(command_line(__doc__).parse_args(), functools.partial(write, plan=planned))
