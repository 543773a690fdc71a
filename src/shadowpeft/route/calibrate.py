"""From answered rows to a policy: one half fits score -> P(error), the other one tests the threshold."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.route.answered import Answered, Table, answerer_of, tabulate
from shadowpeft.route.goals import Goal, Prices, Risk, Share
from shadowpeft.route.intervals import kept_needed
from shadowpeft.route.isotonic import Knots, fit_knots
from shadowpeft.route.policy import CostPromise, Counts, DeferPromise, Policy, Promise, RiskPromise
from shadowpeft.route.scores import kind_of
from shadowpeft.route.thresholds import Tried, at_share, certify, cheapest, sequence

# How far the share that is sent may be from the one asked for, where scores repeat.
_NEAR = 0.01


class Halves(NamedTuple):
    """Indices of the rows that fit and of those that test."""

    fitted: np.ndarray
    held: np.ndarray


def halves(count: int, seed: int) -> Halves:
    """Split rows into two halves at random; the same count and seed always give the same halves."""
    order = np.random.default_rng(seed).permutation(count)
    return Halves(np.sort(order[: count // 2]), np.sort(order[count // 2 :]))


def refuse_early(rows: int, goal: Goal, score: str, deferral: str | None) -> None:
    """Refuse what no answers could mend, before any are computed.

    Raises:
        ConfigError: there is no such score, or it needs a deferral answer and there is none.
        DataError: the rows are too few for the goal even if every answer were kept and right.
    """
    if kind_of(score).needs == "deferral" and deferral is None:
        raise ConfigError("the score 'deferral' needs the deferral answer, such as [REMOTE]; give --deferral")
    least = 1
    if isinstance(goal, Risk):
        least = kept_needed(goal.risk, goal.confidence) or least
    if rows < 2 * least:
        raise DataError(
            f"{_said(goal)} takes {2 * least:,} rows or more, half to fit and half to test, got {rows:,}"
        )


def calibrate(
    rows: Sequence[Answered],
    goal: Goal,
    score: str,
    deferral: str | None,
    data: str,
    data_hash: str,
    seed: int = 0,
) -> Policy:
    """Choose the threshold of a score that meets a goal.

    Args:
        rows: answered rows that neither trained the model nor chose its settings.
        goal: what is promised.
        score: name of the score.
        deferral: the deferral answer, which always goes to the cloud; `None` if there is none.
        data: name of the rows.
        data_hash: their hash.
        seed: decides which rows are in which half.

    Raises:
        ConfigError: there is no such score.
        DataError: the rows are too few, all of one kind, or do not allow the promise; the message says what
            would.
    """
    refuse_early(len(rows), goal, score, deferral)
    by, table = answerer_of(rows), tabulate(rows, score, deferral)
    split = halves(len(rows), seed)
    fitted, held = table.take(split.fitted), table.take(split.held)
    knots = _knots(fitted, score)
    threshold, promise = _meet(goal, table, fitted, held)
    keeps = held.scores >= threshold
    return Policy(
        model=by.model,
        adapter=by.adapter,
        adapter_hash=by.adapter_hash,
        data=data,
        data_hash=data_hash,
        score=score,
        deferral=deferral,
        threshold=threshold,
        knots=knots,
        promise=promise,
        counts=Counts(
            rows=len(rows),
            fitted=len(split.fitted),
            held=len(split.held),
            kept=int(keeps.sum()),
            errors=int(held.wrong[keeps].sum()),
            sent=int((table.scores < threshold).sum()),
        ),
        endpoint=by.endpoint,
    )


def _knots(fitted: Table, score: str) -> Knots:
    ever = fitted.kept_ever
    scores, wrong = fitted.scores[ever], fitted.wrong[ever]
    if kind_of(score).needs == "deferral" and len(scores):
        # All answers but the deferral answer have this one score.
        return ((1.0, float(wrong.mean())),)
    return fit_knots(scores.tolist(), wrong.tolist())


def _meet(goal: Goal, table: Table, fitted: Table, held: Table) -> tuple[float, Promise]:
    if isinstance(goal, Risk):
        return _certified(goal, table, fitted, held)
    if isinstance(goal, Share):
        return _sending(goal, table)
    return _cheapest(goal, fitted, held)


# A risk


def _certified(goal: Risk, table: Table, fitted: Table, held: Table) -> tuple[float, Promise]:
    least = kept_needed(goal.risk, goal.confidence)
    assert least is not None
    answers = int(held.kept_ever.sum())
    if answers < least:
        share = answers / len(held.scores)
        raise DataError(
            f"{_said(goal)} needs at least {least} kept answers without an error in the half that tests it, "
            f"which holds {answers}{_rows(least, share, goal)}"
        )
    candidates = sequence(
        fitted.scores, fitted.wrong, len(held.scores), risk=goal.risk, confidence=goal.confidence
    )
    passed, failed = certify(candidates, held.scores, held.wrong, goal.risk, goal.confidence)
    if passed is None:
        assert failed is not None
        raise DataError(_uncertified(goal, table, failed))
    return passed.threshold, RiskPromise(goal.risk, goal.confidence, passed.bound)


def _uncertified(goal: Risk, table: Table, failed: Tried) -> str:
    """Say why a risk cannot be certified, and how many rows it would take."""
    keeps = table.scores >= failed.threshold
    rate, share = float(table.wrong[keeps].mean()), float(keeps.mean())
    found = (
        f"{_said(goal)} cannot be certified: of the {failed.kept} answers that are kept at the threshold "
        f"likeliest to pass {failed.errors} are wrong, so that up to {100 * failed.bound:.1f} % may be"
    )
    needed = kept_needed(goal.risk, goal.confidence, rate)
    if needed is None:
        return (
            f"{found}; no number of rows would do, since {100 * rate:.1f} % of such answers are wrong; ask "
            "for a higher risk, choose another score or improve the model"
        )
    return (
        f"{found}; if {100 * rate:.1f} % of them are wrong, as in both halves, it takes {needed} kept answers"
        f"{_rows(needed, share, goal)}"
    )


def _rows(kept: int, share: float, goal: Risk) -> str:
    """Say how many rows hold so many kept answers in their half, if a share of them is kept."""
    if share == 0:
        return "; no answer is one that could be kept"
    rows = 2 * math.ceil(kept / share)
    return f"; give about {rows:,} rows, or ask for a risk above {100 * goal.risk:g} %"


def _said(goal: Goal) -> str:
    if isinstance(goal, Risk):
        return f"a risk of {100 * goal.risk:g} % at {100 * goal.confidence:g} % confidence"
    return "a calibration"


# A share


def _sending(goal: Share, table: Table) -> tuple[float, Promise]:
    threshold, (low, high) = at_share(table.scores, goal.defer, goal.confidence)
    if threshold == -math.inf:
        never = float((~table.kept_ever).mean())
        raise DataError(
            f"{100 * never:.1f} % of the answers are the deferral answer or empty and always go to the "
            f"cloud; --defer must be above that, got {goal.defer:g}"
        )
    sent = float((table.scores < threshold).mean())
    if abs(sent - goal.defer) > max(_NEAR, 1 / len(table.scores)):
        more = float((table.scores <= threshold).mean())
        raise DataError(
            f"{100 * (more - sent):.1f} % of the rows have the score {threshold:g}, so that the share sent "
            f"can be {sent:.3f} or {more:.3f} but not {goal.defer:g}; ask for one of these or choose another "
            "score"
        )
    return threshold, DeferPromise(goal.defer, goal.confidence, low=low, high=high)


# A cost


def _cheapest(goal: Prices, fitted: Table, held: Table) -> tuple[float, Promise]:
    threshold = cheapest(fitted.scores, *_prices(goal, fitted))
    if math.isinf(threshold):
        raise DataError(
            "at these prices it costs least to send every request to the cloud; no policy is needed, or the "
            "prices are not what was meant"
        )
    kept, sent = _prices(goal, held)
    expected = np.where(held.scores >= threshold, kept, sent).mean()
    return threshold, CostPromise(goal.edge, goal.cloud, goal.error, expected=float(expected))


def _prices(goal: Prices, table: Table) -> tuple[Any, Any]:
    """Return what each row costs if its answer is kept, and if it is sent."""
    # Where the cloud's answers are not known, they count as right.
    cloud_wrong = np.zeros(len(table.scores)) if table.cloud_right is None else ~table.cloud_right
    kept = goal.edge + goal.error * table.wrong
    return kept, goal.edge + goal.cloud + goal.error * cloud_wrong
