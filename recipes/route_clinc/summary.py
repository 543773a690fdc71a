"""Read what `run.py` wrote: calibrate, resample, and compare the detached shadow with the small model alone.

    python recipes/route_clinc/summary.py --answers OUT --output FOLDER [--risk 0.03] [--resamples 20]

`OUT` holds the answers as they were written, or packed by gzip. For each pair of an edge and a cloud it joins
their answers into `PAIR/calibration.jsonl`, `PAIR/test.jsonl` and `PAIR/shifted.jsonl`, answered rows for
`shadowpeft calibrate --data ... --test ... --shifted ...`. It calibrates on the calibration rows and measures
on the others. Then it halves calibration and test rows anew, label by label, --resamples times, calibrates on
one half and measures on the other. It prints a Markdown table, and writes all figures to `summary.json`.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from shadowpeft.data.rows import read_rows
from shadowpeft.errors import DataError
from shadowpeft.reporting.tables import table
from shadowpeft.route import answered, measures
from shadowpeft.route.answered import Answered, tabulate
from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Goal, Risk, Share
from shadowpeft.route.identity import hash_of_rows
from shadowpeft.route.policy import Policy

PAIRS = (
    ("detached", "attached"),
    ("detached", "cloud_lora"),
    ("small_lora", "cloud_lora"),
    ("small_lora", "attached"),
    ("small_full", "cloud_lora"),
    ("small_full", "attached"),
)
SETS = ("calibration", "test", "shifted")
REMOTE = "[REMOTE]"
# How far a realised share may be from the promised one.
POINTS = 0.02


def read(path: Path) -> dict[str, Answered]:
    """Read a model's answers by the row that they answer."""
    rows = answered.read([(row.fields, row.where) for row in read_rows(str(path))])
    return {row.where: row for row in rows}


def joined(edge: dict[str, Answered], cloud: dict[str, Answered]) -> dict[str, list[Answered]]:
    """Put what the cloud has right beside the edge's answers, set by set."""
    sets: dict[str, list[Answered]] = {name: [] for name in SETS}
    for where, row in edge.items():
        other = cloud[where]
        sets[where.partition(":")[0]].append(
            replace(row, cloud_right=other.right, cloud_seconds=other.seconds)
        )
    return sets


def halved(rows: Sequence[Answered], seed: int) -> tuple[list[Answered], list[Answered]]:
    """Halve rows at random, label by label, as the official splits are drawn."""
    draw, labels = np.random.default_rng(seed), defaultdict(list)
    for row in rows:
        labels[row.expected].append(row)
    first, second = [], []
    for at, name in enumerate(sorted(labels)):
        order = draw.permutation(len(labels[name]))
        shuffled = [labels[name][index] for index in order]
        # Odd counts give the one more to either side in turn.
        middle = (len(shuffled) + at % 2) // 2
        first, second = first + shuffled[:middle], second + shuffled[middle:]
    return first, second


def policy_of(rows: Sequence[Answered], goal: Goal, args: argparse.Namespace, seed: int = 0) -> Policy:
    digest = hash_of_rows(asdict(row) for row in rows)
    return calibrate(rows, goal, args.score, REMOTE, data="calibration", data_hash=digest, seed=seed)


def measured(policy: Policy, rows: Sequence[Answered], seconds: tuple[float, float]) -> dict[str, Any]:
    """Measure a policy on rows."""
    found = measures.outcome(tabulate(rows, policy.score, REMOTE), policy.threshold)
    confidence = measures.fitted_confidence(rows, policy)
    before = measures.raw_confidence(rows, policy)
    edge, cloud = seconds
    return {
        **asdict(found),
        "of_cloud": found.quality / found.cloud if found.quality and found.cloud else None,
        "ece_before": before.error if before else None,
        "ece": confidence.error if confidence else None,
        # Deferral by restart: the cloud answers from the beginning.
        "latency": (edge + found.sent[0] * cloud) / cloud,
    }


def resampled(
    pool: Sequence[Answered], goal: Goal, promised: Callable[[Policy], float], args: argparse.Namespace
) -> dict[str, Any]:
    """Calibrate on one half and measure on the other, again and again."""
    near = under = refused = 0
    shares, risks = [], []
    for seed in range(args.resamples):
        first, second = halved(pool, seed)
        try:
            policy = policy_of(first, goal, args, seed)
        except DataError:
            refused += 1
            continue
        found = measures.outcome(tabulate(second, args.score, REMOTE), policy.threshold)
        risk = found.risk[0] if found.risk else 0.0
        near += abs(found.sent[0] - promised(policy)) <= POINTS
        under += isinstance(goal, Risk) and risk <= goal.risk
        shares.append(found.sent[0] - promised(policy))
        risks.append(risk)
    found = {"resamples": args.resamples, "refused": refused, "share_within_2_points": near}
    if isinstance(goal, Risk):
        found["risk_at_most_promised"] = under
    if shares:
        found |= {"largest_miss_of_share": max(map(abs, shares)), "largest_risk": max(risks)}
    return found


def cost_of(rows: dict[str, Answered]) -> dict[str, float]:
    """Return what an answer takes: a part that every one has, and one for each token (least squares)."""
    timed = [row for row in rows.values() if row.seconds is not None]
    tokens, milliseconds = [len(row.tokens.logprobs) for row in timed], [1000 * row.seconds for row in timed]
    found = {"ms": statistics.mean(milliseconds), "tokens": statistics.mean(tokens)}
    if len(set(tokens)) > 1:
        each, every = np.polyfit(tokens, milliseconds, 1)
        found |= {"ms_of_every_answer": float(every), "ms_a_token": float(each)}
    return found


def summary_of(
    edge: dict[str, Answered], cloud: dict[str, Answered], folder: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Join, calibrate, measure and resample a pair."""
    sets = joined(edge, cloud)
    for name, rows in sets.items():
        answered.write(rows, folder / f"{name}.jsonl")
    seconds = tuple(
        statistics.mean(row.seconds for row in rows.values() if row.seconds is not None)
        for rows in (edge, cloud)
    )
    goal = Risk(args.risk, 0.95)
    pool = sets["calibration"] + sets["test"]
    found: dict[str, Any] = {"edge_seconds": seconds[0], "cloud_seconds": seconds[1]}
    found |= {"edge_cost": cost_of(edge), "cloud_cost": cost_of(cloud)}
    found["resampled_risk"] = resampled(pool, goal, lambda p: p.counts.sent / p.counts.rows, args)
    try:
        policy = policy_of(sets["calibration"], goal, args)
    except DataError as error:
        return {**found, "refused": str(error)}
    share = policy.counts.sent / policy.counts.rows
    found["resampled_share"] = resampled(pool, Share(share, 0.95), lambda p: p.promise.share, args)
    policy.save(folder / "routing.json")
    found |= {"threshold": policy.threshold, "promised_share": share, "bound": policy.promise.bound}
    return found | {name: measured(policy, sets[name], seconds) for name in ("test", "shifted")}


def lines(name: str, found: dict[str, Any]) -> list[list[str]]:
    """Write a pair's figures as lines of the table."""
    if "test" not in found:
        return [[name, "refused", *["-"] * 9]]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    rows = []
    for part in ("test", "shifted"):
        one = found[part]
        rows.append(
            [
                name,
                part,
                percent(found["promised_share"]),
                percent(one["sent"][0]),
                percent(one["risk"][0] if one["risk"] else None),
                percent(one["edge"]),
                percent(one["cloud"]),
                percent(one["quality"]),
                percent(one["of_cloud"]),
                percent(one["latency"]),
                f"{one['ece_before']:.3f} -> {one['ece']:.3f}",
            ]
        )
    return rows


HEADS = (
    "edge, cloud", "rows", "sent, promised", "sent", "risk", "edge alone", "cloud alone", "routed",
    "of cloud", "of its latency", "ECE",
)  # fmt: skip


def main() -> None:
    """Summarise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--risk", type=float, default=0.03)
    parser.add_argument("--score", default="min_margin")
    parser.add_argument("--resamples", type=int, default=20)
    args = parser.parse_args()
    names = {name for pair in PAIRS for name in pair}
    files = [args.answers / f"{name}{ending}" for name in names for ending in (".jsonl", ".jsonl.gz")]
    models = {path.name.partition(".")[0]: read(path) for path in files if path.exists()}
    found, rows = {}, []
    for edge, cloud in PAIRS:
        if edge in models and cloud in models:
            name = f"{edge}-{cloud}"
            found[name] = summary_of(models[edge], models[cloud], args.output / name, args)
            rows += lines(name.replace("-", ", "), found[name])
    text = json.dumps({"risk": args.risk, "score": args.score, "pairs": found}, indent=1)
    (args.output / "summary.json").write_text(text + "\n", encoding="utf-8")
    print(table(HEADS, rows))
    for name, pair in found.items():
        for part in ("resampled_risk", "resampled_share", "refused"):
            if part in pair:
                print(f"{name}, {part.replace('_', ' of ')}: {pair[part]}")


if __name__ == "__main__":
    main()
