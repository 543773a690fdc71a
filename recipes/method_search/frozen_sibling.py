"""Write the jobs that compare a frozen sibling as the shadow with LoRA of as many trained parameters.

    python recipes/method_search/frozen_sibling.py --rows "rows.*.jsonl" --jobs jobs.jsonl [--until TIME]

The base is qwen2.5-coder-1.5b, the sibling qwen2.5-coder-0.5b. Each call writes to JOBS what the rows allow,
the most telling first. With --until TIME, in seconds since 1970, it goes on doing so, while
`search.py --until TIME` works on the file. A job waits until the folders that it reads hold a file READY. All
choices are by validation nll on the first seed: one for the three classifications together, one for gsm8k by
its token loss.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from planning import Ended, Job, command_line, read, repeat, replace, with_tries

BASE, SIBLING = "models/qwen2.5-coder-1.5b", "models/qwen2.5-coder-0.5b"
# The output of `shadowpeft pretrain --train-parts projection`.
PROJECTED = "shadows/projection/shadow"
CLASSIFIED = ("newsgroups20", "amazon5", "clinc150")
# The kinds of task, for each of which a setting is chosen.
GROUPS: tuple[tuple[str, ...], ...] = (CLASSIFIED, ("gsm8k",))
TASKS = ("newsgroups20", "gsm8k", "amazon5", "clinc150")
FIRST, SECOND, THIRD = 1000, 1001, 1002
HEAD = 3e-3
# From low to high; the order of trying is another one.
BODIES = {
    "lora": (1e-4, 2e-4, 3e-4, 5e-4, 1e-3),
    "frozen": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
}
TRIED = {"lora": (3e-4, 5e-4, 2e-4), "frozen": (1e-3, 5e-4, 2e-3)}
PROJECTION = 3e-4
# As many more steps as a frozen sibling takes longer.
STEPS, LONGER = 150, 180
MATHS: dict[str, Any] = {"validation_rows": 1000, "eval_batch_size": 400}


class Arm(NamedTuple):
    """A kind of model.

    Attributes:
        method: its name in `shadowpeft compare`.
        job: what its jobs hold besides.
        study: settings of the study.
        model: the base.
    """

    method: str
    job: dict[str, Any]
    study: dict[str, Any]
    model: str = BASE


_BESIDE = {"shadow_model": PROJECTED}
ARMS = {
    "lora": Arm("lora", {}, {}),
    "longer": Arm("lora", {}, {"steps": LONGER}),
    "small": Arm("lora", {}, {}, SIBLING),
    "frozen": Arm("shadow-frozen", {"alpha": 0.3, "backbone_learning_rate": PROJECTION}, _BESIDE),
    "strong": Arm("shadow-frozen", {"alpha": 0.6, "backbone_learning_rate": PROJECTION}, _BESIDE),
    "unfitted": Arm("shadow-frozen", {"alpha": 0.3}, {"shadow_model": SIBLING}),
    "narrow": Arm(
        "shadow-explicit",
        {
            "alpha": 0.3,
            "backbone_learning_rate": PROJECTION,
            "config": {"r": 32, "train_backbone": False},
        },
        _BESIDE,
    ),
    "trained": Arm(
        "shadow-explicit", {"alpha": 0.3, "backbone_learning_rate": 1e-5, "config": {"r": 32}}, _BESIDE
    ),
    "random": Arm("shadow", {"alpha": 0.6}, {}),
}


class Setting(NamedTuple):
    """An arm and the rate of all but head and projection."""

    arm: str
    body: float

    @property
    def name(self) -> str:
        """The name of its jobs."""
        return f"{self.arm} {self.body:g}/{HEAD:g}"


def job(setting: Setting, task: str, seed: int) -> Job:
    """Return the job of a setting on a task from a seed."""
    arm = ARMS[setting.arm]
    made: Job = {"name": setting.name, "task": task, "model": arm.model, "method": arm.method}
    made |= {"learning_rate": setting.body, "seed": seed, **arm.job}
    study = dict(arm.study)
    if task in CLASSIFIED:
        made |= {"rates": {"head": HEAD / setting.body}, "detached": True}
    else:
        made["answered"] = True
        study |= MATHS
    if study:
        made["study"] = study
    return made


def on(setting: Setting, seed: int, tasks: Iterable[str] = TASKS) -> list[Job]:
    """Return the jobs of a setting on tasks."""
    return [job(setting, task, seed) for task in tasks]


class Measured(Ended):
    """What each setting lost on each task from each seed: nats an item, of gsm8k nats a token."""

    def mean(self, setting: Setting, tasks: Sequence[str]) -> float | None:
        """Average a setting's loss from the first seed; `None` if a run has not ended."""
        model = ARMS[setting.arm].model
        return self.mean_of([(setting.name, model, task, FIRST) for task in tasks])

    def best(self, arm: str, tasks: Sequence[str]) -> Setting | None:
        """Return an arm's best setting on tasks; `None` until all that are always tried have ended."""
        means = {Setting(arm, body): self.mean(Setting(arm, body), tasks) for body in BODIES[arm]}
        if any(means[Setting(arm, body)] is None for body in TRIED[arm]):
            return None
        ended = {setting: mean for setting, mean in means.items() if mean is not None}
        return min(ended, key=lambda setting: ended[setting])


def beyond(best: Setting) -> list[Setting]:
    """Return the setting one step beyond the best one, if this is at an edge of what is always tried."""
    bodies, tried = BODIES[best.arm], sorted(TRIED[best.arm])
    at = bodies.index(best.body)
    if best.body == tried[0]:
        return [best._replace(body=bodies[at - 1])]
    if best.body == tried[-1]:
        return [best._replace(body=bodies[at + 1])]
    return []


def plan(measured: Measured) -> list[Job]:
    """List all jobs that the rows allow, the most telling first."""
    jobs: list[Job] = []
    for bodies in zip(*TRIED.values(), strict=True):
        for task in TASKS:
            jobs += [job(Setting(arm, body), task, FIRST) for arm, body in zip(TRIED, bodies, strict=True)]
    chosen = [(measured.best(arm, tasks), tasks) for tasks in GROUPS for arm in TRIED]
    found = [(best, tasks) for best, tasks in chosen if best is not None]
    loras = [(best, tasks) for best, tasks in found if best.arm == "lora"]
    jobs += [one for best, tasks in found for one in on(best, SECOND, tasks)]
    jobs += [one for best, tasks in found for next in beyond(best) for one in on(next, FIRST, tasks)]
    jobs += on(Setting("narrow", 1e-3), FIRST)
    jobs += on(Setting("small", 3e-4), FIRST, CLASSIFIED)
    jobs += on(Setting("random", 1e-3), FIRST)
    jobs += [one for best, tasks in loras for one in on(best._replace(arm="longer"), FIRST, tasks)]
    jobs += on(Setting("unfitted", 1e-3), FIRST)
    jobs += [one for best, tasks in found for one in on(best, THIRD, tasks)]
    jobs += on(Setting("small", 3e-4), SECOND, CLASSIFIED)
    jobs += [one for best, tasks in loras for one in on(best._replace(arm="longer"), SECOND, tasks)]
    jobs += on(Setting("trained", 1e-3), FIRST)
    jobs += on(Setting("strong", 1e-3), FIRST)
    for arm in ("narrow", "random", "unfitted"):
        jobs += on(Setting(arm, 1e-3), SECOND)
    for seed in (1003, 1004):
        jobs += [one for best, tasks in found for one in on(best, seed, tasks)]
    # A best setting that one step beyond replaced may stand twice.
    return [one for at, one in enumerate(jobs) if one not in jobs[:at]]


def is_ready(one: Job) -> bool:
    """Return whether the folders that a job reads are complete."""
    folders = [one["model"], one.get("study", {}).get("shadow_model", one["model"])]
    return all((Path(folder) / "READY").exists() for folder in folders)


def write(given: argparse.Namespace) -> None:
    """Write the file of jobs anew, if there are others than before."""
    measured = Measured(read(given.rows))
    jobs = with_tries(plan(measured), measured)
    replace(given.jobs, [json.dumps(one) for one in jobs if given.any_model or is_ready(one)])


if __name__ == "__main__":
    repeat(command_line(__doc__).parse_args(), write)
