"""What a score and a policy are worth on answered rows: curves, areas, and promises beside what came of them.

Curves are of the rows in order of their score. Rows of equal score cannot be told apart, so that a curve runs
straight across them, as if their order were left to chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from shadowpeft.reporting.reliability import Bin, reliability
from shadowpeft.reporting.stats import Interval
from shadowpeft.route.answered import Answered, Table, tabulate
from shadowpeft.route.intervals import interval
from shadowpeft.route.policy import Policy
from shadowpeft.route.scores import NAMES

# Points of a curve, both ends among them.
POINTS = 201
_SHARES = np.linspace(0, 1, POINTS)


@dataclass(frozen=True)
class Worth:
    """How well a score tells wrong answers from right ones; deferral answers are left out.

    Attributes:
        name: the score.
        auroc: probability that a right answer scores higher than a wrong one.
        area: mean over all coverages of the share of errors among the answers kept (AURC); less is better.
    """

    name: str
    auroc: float
    area: float


@dataclass(frozen=True)
class Outcome:
    """What a policy does on a set of rows.

    Attributes:
        rows: how many there are.
        sent: the share that goes to the cloud, with its 95 % interval.
        kept: how many answers are kept.
        errors: wrong ones among them (false keeps).
        risk: their share, with its 95 % interval; `None` if nothing is kept.
        needless: right answers that were sent all the same (false deferrals).
        quality: the share of requests answered rightly; `None` if the cloud's answers are not known.
        edge: the same of the edge alone.
        cloud: the same of the cloud alone.
    """

    rows: int
    sent: tuple[float, Interval]
    kept: int
    errors: int
    risk: tuple[float, Interval] | None
    needless: int
    quality: float | None
    edge: float
    cloud: float | None


@dataclass(frozen=True)
class Confidence:
    """How well probabilities of being right agree with being right.

    Attributes:
        error: expected calibration error.
        bins: of the reliability diagram.
    """

    error: float
    bins: list[Bin]


def worth(table: Table, name: str) -> Worth | None:
    """Measure a score; `None` if the answers that may be kept are all right, all wrong, or there are none."""
    ever = table.kept_ever
    scores, right = table.scores[ever], table.right[ever]
    if len(set(right.tolist())) < 2:
        return None
    return Worth(name, float(roc_auc_score(right, scores)), float(_risks(scores, ~right).mean()))


def worths(rows: Sequence[Answered], deferral: str | None) -> list[Worth]:
    """Measure every score that the rows allow, the best by area first."""
    found = []
    for name, kind in NAMES.items():
        values = [row.tokens.values(kind.needs) for row in rows]
        lengths = {0 if value is None else len(value) for value in values}
        if None in values or (kind.one_entry and lengths - {0, 1}):
            continue
        if (one := worth(tabulate(rows, name, deferral), name)) is not None:
            found.append(one)
    return sorted(found, key=lambda each: each.area)


def _risks(scores: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Return the expected share of errors among the 1, 2, ... surest answers."""
    errors = _running(-scores, wrong.astype(float))
    return errors[1:] / np.arange(1, len(scores) + 1)


def _running(order: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the expected sum of the first 0, 1, 2, ... values by rising order, straight across equal
    ones."""
    by = np.argsort(order, kind="stable")
    sums = np.concatenate([[0.0], values[by].cumsum()])
    ordered = order[by]
    ends = np.concatenate([[0], np.flatnonzero(ordered[1:] > ordered[:-1]) + 1, [len(order)]])
    return np.interp(np.arange(len(order) + 1), ends, sums[ends])


def risk_coverage(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return coverages, as shares of all rows, and the share of errors among the answers kept there."""
    ever = table.kept_ever
    risks = _risks(table.scores[ever], table.wrong[ever])
    return np.arange(1, len(risks) + 1) / len(table.scores), risks


def quality_curve(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return shares sent to the cloud, and the share of requests then answered rightly.

    The least sure are sent first, the rows that are never kept before all. The cloud must be known.
    """
    assert table.cloud_right is not None
    gains = table.cloud_right.astype(float) - table.right
    return _SHARES, _along(table.right.mean() + _running(table.scores, gains) / len(gains))


def oracle_curve(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the curve of who knows which answers are wrong: those that only the cloud has right go first."""
    assert table.cloud_right is not None
    gains = table.cloud_right.astype(float) - table.right
    return _SHARES, _along(table.right.mean() + _running(-gains, gains) / len(gains))


def _along(values: np.ndarray) -> np.ndarray:
    return np.interp(_SHARES * (len(values) - 1), np.arange(len(values)), values)


def quality_band(table: Table, resamples: int = 500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % band of `quality_curve` over other rows (bootstrap of the rows)."""
    random = np.random.default_rng(seed)
    count = len(table.scores)
    curves = [quality_curve(table.take(random.integers(0, count, count)))[1] for _ in range(resamples)]
    low, high = np.quantile(np.stack(curves), (0.025, 0.975), axis=0)
    return low, high


def point(table: Table, threshold: float) -> tuple[float, float | None]:
    """Return the share that a threshold sends, and the share of requests then answered rightly."""
    sends = table.scores < threshold
    if table.cloud_right is None:
        return float(sends.mean()), None
    return float(sends.mean()), float(np.where(sends, table.cloud_right, table.right).mean())


def outcome(table: Table, threshold: float) -> Outcome:
    """Measure what a threshold does."""
    keeps = table.scores >= threshold
    kept, errors, rows = int(keeps.sum()), int(table.wrong[keeps].sum()), len(keeps)
    _, quality = point(table, threshold)
    return Outcome(
        rows=rows,
        sent=(1 - kept / rows, interval(rows - kept, rows)),
        kept=kept,
        errors=errors,
        risk=(errors / kept, interval(errors, kept)) if kept else None,
        # A deferral answer may be the right one, and is sent with reason.
        needless=int(table.right[~keeps & table.kept_ever].sum()),
        quality=quality,
        edge=float(table.right.mean()),
        cloud=None if table.cloud_right is None else float(table.cloud_right.mean()),
    )


def raw_confidence(rows: Sequence[Answered], policy: Policy) -> Confidence | None:
    """Compare what the model itself says, the probability of its whole answer, with what is right."""
    picked = [row for row in rows if _may_keep(row, policy)]
    probabilities = [min(1.0, float(np.exp(sum(row.tokens.logprobs)))) for row in picked]
    return _confidence(probabilities, picked)


def fitted_confidence(rows: Sequence[Answered], policy: Policy) -> Confidence | None:
    """Compare what the policy says, 1 - P(error), with what is right."""
    picked = [row for row in rows if _may_keep(row, policy)]
    probabilities = [1 - policy.decide(row.tokens, row.answer).error_probability for row in picked]
    return _confidence(probabilities, picked)


def _may_keep(row: Answered, policy: Policy) -> bool:
    return bool(tabulate([row], policy.score, policy.deferral).kept_ever[0])


def _confidence(probabilities: Sequence[float], rows: Sequence[Answered]) -> Confidence | None:
    return Confidence(*reliability(probabilities, [int(row.right) for row in rows])) if rows else None
