"""Compute every figure of the records on the head's rate and on the shadow's state from their rows.

    python recipes/method_search/head_rate_report.py ROWS.jsonl ... [--answers FOLDER]

Prints Markdown: the settings tried, paired differences with their standard errors, and, if FOLDER has the
answers that `search.py --answers` kept, what mixing them gains. Differences in nll are in nats, in accuracy
in points, first minus second.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from measurements import (
    ALL,
    FRESH,
    LORA,
    LORA_COUPLED,
    MODELS,
    PAIRS,
    SEARCHED,
    SHADOW,
    SHADOW_COUPLED,
    Measurements,
    Pair,
    compared,
    differences,
)
from mixed_answers import Answers, mix, vote

DIFFERENCE = (
    "first - second", "seeds", "nll ± 95 % over seeds", "s.e. over seeds; over pairs", "lower nll in",
    "points", "s.e. over seeds; over pairs", "95 % over items and seeds",
)  # fmt: skip
ARMS = ("blind", "whole", "mean")
MATH_PAIRS = tuple((model, "gsm8k") for model in MODELS)
TUNED = "shadow 1e-3/3e-3 - LoRA 3e-4/3e-3"
COUPLED = "shadow coupled - LoRA coupled"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table whose first column is aligned left."""
    rules = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rules, *rows))


def settings(measured: Measurements) -> Iterable[list[str]]:
    """Yield a line for each setting that ran on all pairs, each method's best first."""
    for method in ("lora", "shadow"):
        # Names of more words are arms and extra runs.
        names = [name for name in measured.names() if name.split()[0] == method and len(name.split()) == 2]
        names = [name for name in names if 1000 in measured.seeds(name)]
        for name in sorted(names, key=lambda one: measured.mean(measured.nll, one, [1000])):
            cells = means(measured, name, [1000])
            if set(SEARCHED) <= set(measured.seeds(name)):
                cells += means(measured, name, SEARCHED)
            yield [name, *cells, *[""] * (4 - len(cells))]


def means(measured: Measurements, name: str, seeds: Sequence[int], digits: int = 1) -> list[str]:
    """Return a setting's nll and its points, over all pairs."""
    nll, points = (measured.mean(value, name, seeds) for value in (measured.nll, measured.points))
    return [f"{nll:.4f}", f"{points:.{digits}f}"]


def difference(
    measured: Measurements,
    label: str,
    first: str,
    *,
    second: str,
    seeds: Sequence[int],
    pairs: Sequence[Pair] = PAIRS,
) -> list[str]:
    """Return a line of the table of paired differences."""
    nll, points = (
        compared(differences(value, first, second, seeds=seeds, pairs=pairs))
        for value in (measured.nll, measured.points)
    )
    low, high = measured.interval(first, second, seeds, pairs=pairs)
    return [
        label,
        f"{seeds[0]}-{seeds[-1]}",
        f"{nll.mean:+.4f} ± {nll.half:.4f}",
        f"{nll.over_seeds:.4f}; {nll.over_pairs:.4f}",
        f"{nll.lower} of {nll.runs}",
        f"{points.mean:+.2f}",
        f"{points.over_seeds:.2f}; {points.over_pairs:.2f}",
        f"{low:+.2f} to {high:+.2f}",
    ]


def head_rate(measured: Measurements) -> Iterable[list[str]]:
    """Yield the differences that answer the question about the head's rate."""
    for seeds in (FRESH, ALL):
        for label, first, second in (
            ("LoRA 3e-4/3e-3 - LoRA coupled 5e-4", LORA, LORA_COUPLED),
            ("shadow 1e-3/3e-3 - shadow coupled 2e-3", SHADOW, SHADOW_COUPLED),
            (COUPLED, SHADOW_COUPLED, LORA_COUPLED),
            (TUNED, SHADOW, LORA),
            ("shadow coupled - LoRA 3e-4/3e-3", SHADOW_COUPLED, LORA),
        ):
            yield difference(measured, label, first, second=second, seeds=seeds)
    for task in dict.fromkeys(task for _, task in PAIRS):
        of_task = [pair for pair in PAIRS if pair[1] == task]
        for label, first, second in ((COUPLED, SHADOW_COUPLED, LORA_COUPLED), (TUNED, SHADOW, LORA)):
            yield difference(measured, f"{label}, {task}", first, second=second, seeds=ALL, pairs=of_task)
    rest = [pair for pair in PAIRS if pair[1] != "clinc150"]
    yield difference(measured, f"{TUNED}, without clinc150", SHADOW, second=LORA, seeds=ALL, pairs=rest)


def by_pair(measured: Measurements, first: str, second: str) -> Iterable[list[str]]:
    """Yield a difference pair by pair, over all seeds."""
    for pair in PAIRS:
        cells = [" ".join(pair)]
        for name in (first, second):
            points, nll = (
                measured.mean(value, name, ALL, [pair]) for value in (measured.points, measured.nll)
            )
            cells.append(f"{points:.1f}, {nll:.3f}")
        for value, digits in ((measured.points, 2), (measured.nll, 4)):
            found = differences(value, first, second, seeds=ALL, pairs=[pair])[0]
            cells += [f"{found.mean():+.{digits}f}", f"{found.std(ddof=1) / len(found) ** 0.5:.{digits}f}"]
        yield cells


def chosen_by_pair(measured: Measurements) -> Iterable[str]:
    """Yield what comes out where each pair takes its own best of three settings, by seed 1000."""
    groups = {
        "lora": [LORA, "lora 0.0005/0.003", LORA_COUPLED],
        "shadow": [SHADOW, "shadow 0.002/0.003", SHADOW_COUPLED],
    }
    best = {
        method: [min((measured.nll(name, pair, 1000), name) for name in names)[1] for pair in PAIRS]
        for method, names in groups.items()
    }
    for label, value in (("nll", measured.nll), ("points", measured.points)):
        gaps = [
            [value(shadow, pair, seed) - value(lora, pair, seed) for seed in SEARCHED[1:]]
            for shadow, lora, pair in zip(best["shadow"], best["lora"], PAIRS, strict=True)
        ]
        found = compared(np.array(gaps))
        yield (
            "- Each pair its own best of three by seed 1000, seeds 1001-1002, shadow - LoRA, "
            f"{label}: {found.mean:+.4f}, s.e. over seeds {found.over_seeds:.4f}, "
            f"over pairs {found.over_pairs:.4f}"
        )
    yield f"- Chosen: {best}"


def state(measured: Measurements) -> Iterable[list[str]]:
    """Yield the differences that answer the question about the shadow's state."""
    for arm in ARMS:
        name = f"{SHADOW} {arm}"
        seeds = measured.seeds(name)
        yield difference(measured, f"{arm} - default", name, second=SHADOW, seeds=seeds)
        yield difference(measured, f"{arm} - LoRA 3e-4/3e-3", name, second=LORA, seeds=seeds)
    yield difference(
        measured, "default - LoRA 3e-4/3e-3", SHADOW, second=LORA, seeds=measured.seeds(f"{SHADOW} blind")
    )


def gsm8k(measured: Measurements) -> Iterable[list[str]]:
    """Yield the losses on gsm8k: the arms from all seeds, and LoRA's runs that did not run out of memory."""
    for arm in ("", *ARMS):
        name = f"{SHADOW_COUPLED} {arm}".strip()
        losses = [measured.mean(measured.nll, name, SEARCHED, [pair]) for pair in MATH_PAIRS]
        cells = [arm or "default", *(f"{loss:.4f}" for loss in losses), f"{np.mean(losses):.4f}", "", ""]
        if arm:
            gaps = differences(measured.nll, name, SHADOW_COUPLED, seeds=SEARCHED, pairs=MATH_PAIRS)
            cells[-2:] = [f"{compared(gaps).mean:+.4f}", f"{compared(gaps).over_seeds:.4f}"]
        yield cells
    for name in (LORA_COUPLED, "lora 0.001"):
        ran = {
            pair: [seed for seed in SEARCHED if (name, *pair, seed) in measured.rows] for pair in MATH_PAIRS
        }
        if not all(ran.values()):
            continue
        losses = [measured.mean(measured.nll, name, seeds, [pair]) for pair, seeds in ran.items()]
        there = ", ".join(f"{model} {seeds}" for (model, _), seeds in ran.items())
        yield [f"{name} ({there})", *(f"{loss:.4f}" for loss in losses), f"{np.mean(losses):.4f}", "", ""]


def detached(measured: Measurements) -> Iterable[list[str]]:
    """Yield the detached accuracy by pair."""
    for pair in PAIRS:
        shares = [
            measured.mean(measured.detached_points, name, SEARCHED, [pair])
            for name in (SHADOW, f"{SHADOW} mean")
        ]
        yield [" ".join(pair), *(f"{share:.1f}" for share in shares)]


def mixed(answers: Answers) -> Iterable[str]:
    """Yield what mixing answers gains."""
    yield "| what | nll ± 95 % over seeds | points ± 95 % | points by pair | |"
    yield "| --- | --- | --- | --- | --- |"
    for name in (SHADOW, f"{SHADOW} mean", SHADOW_COUPLED):
        yield mix(answers, name, SEARCHED)
    turns = ((1000, 1001), (1001, 1002), (1002, 1000))
    half = f"{LORA} half"
    yield vote(answers, (half, half), "two LoRAs of half the rank, two seeds, - one LoRA", turns)
    label = "two whole LoRAs, two seeds (twice the parameters), - one LoRA"
    yield vote(answers, (LORA, LORA), label, turns)
    label = "LoRA and shadow, one seed (twice the parameters), - one LoRA"
    yield vote(answers, (LORA, SHADOW), label, [(seed, seed) for seed in SEARCHED])


def extra(measured: Measurements) -> Iterable[list[str]]:
    """Yield the runs of 600 steps and of other strengths."""
    for name in measured.names():
        if " 600" in name or "alpha" in name:
            for seed in measured.seeds(name):
                yield [name, str(seed), *means(measured, name, [seed], digits=2)]


def long_runs(measured: Measurements) -> Iterable[str]:
    """Yield the difference at 600 steps."""
    shadow, lora = "shadow 0.0005/0.0015 600", "lora 0.00015/0.0015 600"
    for label, value in (("nll", measured.nll), ("points", measured.points)):
        gaps = differences(value, shadow, lora, seeds=[1000])[:, 0]
        by_pair = ", ".join(f"{' '.join(pair)} {gap:+.3f}" for pair, gap in zip(PAIRS, gaps, strict=True))
        yield (
            f"- 600 steps, {shadow} - {lora}, seed 1000, {label}: {gaps.mean():+.4f}, s.e. over pairs "
            f"{gaps.std(ddof=1) / len(PAIRS) ** 0.5:.4f}: {by_pair}"
        )


def report_head_rate(measured: Measurements) -> None:
    """Print what was measured of the head's rate."""
    heads = ["nll, seed 1000", "points, seed 1000", "nll, 1000-1002", "points, 1000-1002"]
    print("\n## Settings, mean of six pairs\n")
    print(table(["body / head", *heads], settings(measured)))
    print("\n## Differences over six pairs\n")
    print(table(DIFFERENCE, head_rate(measured)))
    for first, second in ((SHADOW, LORA), (SHADOW_COUPLED, LORA_COUPLED), (LORA, LORA_COUPLED)):
        print(f"\n### {first} against {second}, seeds {ALL[0]}-{ALL[-1]}\n")
        heads = ["first: points, nll", "second: points, nll", "points, first - second", "s.e.", "nll", "s.e."]
        print(table(["pair", *heads], by_pair(measured, first, second)))
    print("\n" + "\n".join(chosen_by_pair(measured)))


def report_state(measured: Measurements, folder: Path | None) -> None:
    """Print what was measured of the shadow's state."""
    print("\n## What the state is worth, all at 1e-3/3e-3\n")
    print(table(DIFFERENCE, state(measured)))
    print("\n### gsm8k, loss in nats a token, shadow at 2e-3, two models, three seeds\n")
    print(table(["", "gemma", "qwen", "mean", "- default", "s.e. over seeds"], gsm8k(measured)))
    print("\n### Detached accuracy, seeds 1000-1002\n")
    print(table(["pair", "default", "mean start"], detached(measured)))
    if folder is not None:
        print("\n## Mixed answers, seeds 1000-1002\n")
        print("\n".join(mixed(Answers(folder, measured))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--answers", type=Path)
    given = parser.parse_args()
    measured = Measurements(given.rows)
    report_head_rate(measured)
    report_state(measured, given.answers)
    print("\n## 600 steps, and other strengths\n")
    print(table(["setting", "seeds", "nll, six pairs", "points"], extra(measured)))
    print("\n" + "\n".join(long_runs(measured)))


if __name__ == "__main__":
    main()
