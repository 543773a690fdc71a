"""Write the jobs that ask what LoRA and the shadow lose where nobody searches for a learning rate.

    python recipes/method_search/robustness.py --rows "rows.*.jsonl" --jobs jobs.jsonl [--until TIME]
        [--place gpu]

Each call writes to JOBS all jobs, the most telling first; `search.py` runs them. With --until TIME, in
seconds since 1970, it goes on doing so, and leaves out what would not end by then. A job waits until its
model's folder holds a file READY. Written down before any run:

**Question.** Most users never search. They take one default for every task, and one rate for body and head,
as trainers have. What does each method reach so, how much less than with a rate that is tuned for each task,
and how often does a run fail if the rate is off?

**What is compared.** LoRA at rank 16 with its customary 2e-4, alpha twice the rank, no dropout; and `normed`
with as many trained parameters at the package's defaults, 1e-3 and alpha 0.6. gemma-3-270m and
qwen2.5-coder-0.5b on newsgroups20, clinc150, amazon5, and gsm8k by its loss; 150 steps of 16 rows; validation
rows only. Each method also runs at five rates over a factor of ten, LoRA 1e-4 to 1e-3, the shadow 5e-4 to
5e-3. Both grids hold the default in the second place and the best single rate of results/quality/head_rate
(5e-4 and 2e-3) inside. Beside them, in classification, the setting that was best there with a rate for the
head of its own, 3e-4/3e-3 and 1e-3/3e-3: what a better default is worth.

**Measures.** *Regret*: the tuned rate minus the default, in points and nats, pair by pair. The tuned rate is
the best of the grid by nll on one seed, and is measured on the other seed, both ways, so that the best of
five is not flattered. *Failed*: a run that diverged (its answers are not numbers), or whose answers are no
better than always giving the commonest one (within two standard errors); on gsm8k one that diverged or lost
twice the pair's least. The share is of all runs of the grid, with its exact 95 % interval; runs of one rate
are alike, so that the interval is too narrow, if anything. *Slack*: the mean over the grid minus the default.

**Decision.** Primary: shadow minus LoRA at the defaults, six classifications, four seeds; one leads if the 95
% interval of the points over items and seeds excludes zero, else they are level. Second, judged alone: the
difference of the regrets in points; the method with the lower one is called more robust if its 95 % interval
over items and seeds excludes zero. Everything else is secondary. A run that diverged is never right; means of
nats leave it out and say so. One that was out of memory is no result: it is tried again, twice at most.

**Cost.** The grid takes 160 runs of 150 steps (defaults among them), the setting with a head's rate 24, both
from two more seeds 56: 240 runs. Eight processes on a GPU took 29 to 50 s for one (results/quality/steps),
5.2 s of the GPU each: 21 minutes, and 3 to begin. In this order: the grid from the first seed, the head's
rate, the grid from the second seed, then the third and the fourth seed, which is left out first where time is
short, then the third.

    nvidia-cuda-mps-control -d
    T=$(($(date +%s) + 1680))
    python recipes/method_search/robustness.py --rows "rows.*.jsonl" --jobs jobs.jsonl --until $T &
    for N in 0 1 2 3 4 5 6 7; do python recipes/method_search/search.py --jobs jobs.jsonl --claims claims \\
        --output rows.$N.jsonl --encoded encoded --data-dir data --bf16 --batch-size 16 --max-length 256 \\
        --validation-rows 1000 --eval-batch-size 100 --until $T & done; wait
    python recipes/method_search/robustness_report.py rows.*.jsonl

**The embedded model.** `--place embedded` is the same on a CPU, much smaller: 7.5 million parameters, the
subset of clinc150 that ships in the package, 100 steps of 8 rows, two seeds, no rate for the head. The grid
is 1e-3, 3e-3 and 1e-2 for both methods, around 3e-3, which earlier studies of this model chose for both.
LoRA's customary rate lies below it, since it is that of larger models, and the shadow's default is its lowest
rate.
"""

from collections.abc import Sequence

from places import METHODS, Place, job, keep_planning, once
from planning import Ended, Job, Pair, with_tries

GRID_SEEDS, MORE_SEEDS = (1010, 1011), (1012, 1013)


def gridded(place: Place, pairs: Sequence[Pair], seed: int) -> list[Job]:
    """Return the jobs of the grid from a seed, those of the defaults first."""
    rates = {method: (place.default[method], *place.grid[method]) for method in METHODS}
    return once(
        job(place, pair, method, body=body, head=None, seed=seed)
        for at in range(1 + max(map(len, place.grid.values())))
        for pair in pairs
        for method in METHODS
        for body in rates[method][at : at + 1]
    )


def defaults(place: Place, pairs: Sequence[Pair], seed: int) -> list[Job]:
    """Return the jobs of both defaults from a seed."""
    return [
        job(place, pair, method, body=place.default[method], head=None, seed=seed)
        for pair in pairs
        for method in METHODS
    ]


def headed(place: Place, seed: int) -> list[Job]:
    """Return the jobs of the setting with a rate for the head of its own; none where it has none."""
    settings = {method: rates for method, rates in place.tuned.items() if rates[0] != rates[1]}
    return [
        job(place, pair, method, body=body, head=head, seed=seed)
        for pair in place.pairs
        for method, (body, head) in settings.items()
    ]


def plan(place: Place, ended: Ended) -> list[Job]:
    """List all jobs, the most telling first."""
    pairs = (*place.pairs, *place.maths)
    jobs: list[Job] = []
    for seed in GRID_SEEDS:
        jobs += gridded(place, pairs, seed) + headed(place, seed)
    # The embedded model has two seeds.
    for seed in MORE_SEEDS if place.maths else ():
        jobs += defaults(place, pairs, seed) + headed(place, seed)
    return with_tries(jobs, ended)


if __name__ == "__main__":
    keep_planning(__doc__, plan)
