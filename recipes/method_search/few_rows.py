"""Write the jobs that compare LoRA with the shadow where there are 160 or 640 rows to learn from.

    python recipes/method_search/few_rows.py --rows "rows.*.jsonl" --jobs jobs.jsonl [--until TIME]
        [--place gpu]

Each call writes to JOBS what the rows allow, the most telling first; `search.py` runs it. With --until TIME,
in seconds since 1970, it goes on doing so, while `search.py --until TIME` works on the file. A job waits
until its model's folder holds a file READY. Written down before any run:

**Hypothesis.** To correct activations overfits less than to change weights (JoLA and T-Few are published to
win with 100 to 1,000 rows): with few rows the shadow's gap to LoRA is smaller than with all, or turns.

**What is compared.** LoRA at rank 16 and `normed` with as many trained parameters and alpha 0.6, six pairs of
gemma-3-270m and qwen2.5-coder-0.5b with newsgroups20, clinc150 and amazon5; validation rows only. 150 steps
of 16 rows, whatever there is to learn from: 15 passes over 160 rows, 3.75 over 640, and as many steps as the
runs over all rows in results/quality/head_rate, so that the number of different rows alone differs. (A first
plan had 300 steps; nothing could then have been compared with.) A run's seed draws its rows, at random and
the same for both methods: with another sample drawn once for all seeds, the largest noise would be no part of
the intervals. 160 rows hold some 99 of clinc150's 151 answers, so that no method reaches 70 % there.

**Settings.** Both methods try the same four, at each size: the rates that were best over all rows, for body
and head, times 2, 1 and 0.5, and times 1 with a dropout of 0.1. From the first seed; a method's setting is
the one with the lowest nll there, averaged over the six pairs. The other six seeds choose nothing.

**Decision.** Primary, at 160 rows: shadow minus LoRA over the six pairs, seeds that chose nothing. One of
them leads if the 95 % intervals of the points, over items and seeds, and of the nll, over seeds, both exclude
zero on its side; else they are level. Where 160 rows show a lead, 640 rows are judged by the same rule; where
not, they are reported as secondary, and so are single pairs. The hypothesis holds if the difference in nats
is below that of all rows, +0.0487 ± 0.0091, by more than both margins together, and fails if it is above by
as much. A run that was out of memory is no result: it is tried again, twice at most. One that diverged
(its answers are not numbers) is worse than all others when a setting is chosen, and never right; means of
nats leave it out and say so.

**Cost.** 48 runs a size choose, 72 a size confirm: 240 runs of 150 steps. Eight processes on a GPU took 35
to 50 s for one (results/quality/steps), 5.2 s of the GPU each: 21 minutes, and 3 to begin. In this order:
160 rows, chosen, then its six seeds; 640 rows the same. Left out where time is short: the last seeds of 640
rows, so that five are left after 28 minutes in all at the slowest of those times.

    nvidia-cuda-mps-control -d
    T=$(($(date +%s) + 1680))
    python recipes/method_search/few_rows.py --rows "rows.*.jsonl" --jobs jobs.jsonl --until $T &
    for N in 0 1 2 3 4 5 6 7; do python recipes/method_search/search.py --jobs jobs.jsonl --claims claims \\
        --output rows.$N.jsonl --encoded encoded --data-dir data --bf16 --batch-size 16 --max-length 256 \\
        --validation-rows 1000 --eval-batch-size 100 --until $T & done; wait
    python recipes/method_search/few_rows_report.py rows.*.jsonl

**The embedded model.** `--place embedded` is the same on a CPU, much smaller: 7.5 million parameters, the
subset of clinc150 that ships in the package, 100 steps of 8 rows (5 and 1.25 passes), three settings (rates
of 3e-3 for both methods times 2 and 1, and dropout), two seeds that chose nothing. It shows that the recipe
runs, and what so small a model says. newsgroups20 was to be there, too. Its first four runs, of both methods,
answered no better than chance; it was left out then, after eight runs in all.
"""

from typing import NamedTuple

from places import METHODS, Place, job, keep_planning
from planning import Ended, Job, Pair, key_of, lowest, with_tries

SIZES = (160, 640)
FIRST = 1020
DROPOUT = 0.1
DROPOUTS = {"lora": "lora_dropout", "shadow": "dropout"}


class Setting(NamedTuple):
    """What a method is trained with.

    Attributes:
        method: lora or shadow.
        rows: how many rows it learns from.
        factor: its rates, in those that are best with all rows.
        dropout: share of the inputs of a low-rank part that is dropped.
    """

    method: str
    rows: int
    factor: float
    dropout: float = 0.0

    @property
    def words(self) -> str:
        """What is added to the rates to name its jobs."""
        return f"rows {self.rows}" + (f" dropout {self.dropout:g}" if self.dropout else "")

    def job(self, place: Place, pair: Pair, seed: int) -> Job:
        """Return its job on a pair from a seed."""
        body, head = (self.factor * rate for rate in place.tuned[self.method])
        made = job(place, pair, self.method, body=body, head=head, seed=seed)
        made |= {"name": f"{made['name']} {self.words}", "rows": self.rows}
        if self.dropout:
            made["config"] = {DROPOUTS[self.method]: self.dropout}
        return made


def seeds(place: Place) -> range:
    """Return the seeds that choose nothing."""
    return range(FIRST + 1, FIRST + 1 + place.more)


def tried(place: Place, method: str, rows: int) -> list[Setting]:
    """List what a method tries at a number of rows."""
    plain = [Setting(method, rows, factor) for factor in place.factors]
    return [*plain, Setting(method, rows, 1, DROPOUT)]


def best(place: Place, method: str, rows: int, ended: Ended) -> Setting | None:
    """Return a method's setting at a number of rows; `None` until all that is tried has ended."""
    means = {}
    for one in tried(place, method, rows):
        jobs = [one.job(place, pair, FIRST) for pair in place.pairs]
        means[one] = ended.mean_of([key_of(made) for made in jobs])
    return lowest(means)


def plan(place: Place, ended: Ended) -> list[Job]:
    """List all jobs that the rows allow, the most telling first, both methods of a setting together."""
    jobs: list[Job] = []
    for rows in SIZES:
        both = zip(*(tried(place, method, rows) for method in METHODS), strict=True)
        jobs += [one.job(place, pair, FIRST) for two in both for pair in place.pairs for one in two]
        chosen = [best(place, method, rows, ended) for method in METHODS]
        if None not in chosen:
            jobs += [
                one.job(place, pair, seed)
                for seed in seeds(place)
                for pair in place.pairs
                for one in chosen
                if one is not None
            ]
    return with_tries(jobs, ended)


if __name__ == "__main__":
    keep_planning(__doc__, plan)
