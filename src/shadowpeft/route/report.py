"""The report of a policy: what it promises, what came of it, and what else could have been done."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from shadowpeft.reporting.stats import Interval
from shadowpeft.reporting.tables import UNKNOWN
from shadowpeft.route import measures, plots
from shadowpeft.route.answered import Answered, Table, tabulate
from shadowpeft.route.calibrate import halves
from shadowpeft.route.measures import Outcome
from shadowpeft.route.pages import Part, as_html, as_markdown
from shadowpeft.route.policy import DeferPromise, Policy, RiskPromise
from shadowpeft.route.scores import NAMES, kind_of
from shadowpeft.storage import atomic

MARKDOWN, HTML = "report.md", "report.html"
HELD, TEST, SHIFTED = "held-out half", "test", "shifted"
_ENTROPY = "mean_entropy"


def write_report(
    policy: Policy,
    calibration: Sequence[Answered],
    seed: int,
    folder: str | Path,
    test: Sequence[Answered] = (),
    shifted: Sequence[Answered] = (),
) -> None:
    """Write report.md and report.html.

    Args:
        policy: the policy.
        calibration: the rows that it was made from.
        seed: that of its halves.
        folder: where to write.
        test: rows of the same kind that it has not seen.
        shifted: rows of another kind.

    Raises:
        CheckpointError: a file cannot be written.
    """
    held = [calibration[at] for at in halves(len(calibration), seed).held]
    sets = {HELD: held, TEST: list(test), SHIFTED: list(shifted)}
    sets = {name: rows for name, rows in sets.items() if rows}
    # What is shown once is shown on rows that had no part in the policy, if there are any.
    shown = TEST if TEST in sets else HELD
    parts = [
        _promised(policy, sets),
        _calibration(policy, sets, shown),
        _risk(policy, sets[shown], shown),
        _quality(policy, sets[shown], shown),
        _scores(policy, calibration),
    ]
    kept = [part for part in parts if part is not None]
    title = f"When {policy.model} may answer by itself"
    lead = _lead(policy)
    atomic.write_together(
        Path(folder),
        {
            MARKDOWN: atomic.text(as_markdown(title, lead, kept, HTML)),
            HTML: atomic.text(as_html(title, lead, kept)),
        },
    )


# The parts


def _lead(policy: Policy) -> str:
    by = (
        policy.model
        if policy.adapter is None
        else f"{policy.model} with the adapter {policy.adapter}, detached"
    )
    never = "" if policy.deferral is None else f" The answer {policy.deferral} always goes to the cloud."
    counts = policy.counts
    return (
        f"Edge: {by}. An answer is kept if its score {policy.score} ({kind_of(policy.score).doc}) is at "
        f"least {policy.threshold:.6g}.{never} {promise_of(policy)} Calibrated on {counts.rows:,} rows of "
        f"{policy.data} (SHA-256 {policy.data_hash[:12]}): P(error) was fitted on {counts.fitted:,} of "
        f"them; of the other {counts.held:,}, {counts.kept:,} answers are kept, {counts.errors:,} of "
        "them wrong."
    )


def promise_of(policy: Policy) -> str:
    """Say in a sentence what a policy promises."""
    promise = policy.promise
    if isinstance(promise, RiskPromise):
        return (
            f"With {_percent(promise.confidence, 0)} confidence at most {_percent(promise.risk)} of the kept "
            f"answers to requests like these are wrong (bound {_percent(promise.bound)})."
        )
    if isinstance(promise, DeferPromise):
        return (
            f"{_percent(promise.share)} of requests like these go to the cloud ({_percent(promise.low)} to "
            f"{_percent(promise.high)} with {_percent(promise.confidence, 0)} confidence)."
        )
    return (
        f"No other threshold costs less at {promise.edge:g} for an answer of the edge, {promise.cloud:g} for "
        f"one of the cloud and {promise.error:g} for an error: {promise.expected:.4g} a request."
    )


def _promised(policy: Policy, sets: Mapping[str, Sequence[Answered]]) -> Part:
    heads = (
        "", "rows", "sent", "sent, 95 % interval", "kept", "wrong", "risk", "risk, 95 % interval",
        "right but sent", "answered rightly", "by edge alone", "by cloud alone", "of cloud alone",
    )  # fmt: skip
    promise, counts = policy.promise, policy.counts
    risk = promise.risk if isinstance(promise, RiskPromise) else None
    share = promise.share if isinstance(promise, DeferPromise) else counts.sent / counts.rows
    rows = [["promised", UNKNOWN, _percent(share), *[UNKNOWN] * 3, _percent(risk), *[UNKNOWN] * 6]]
    rows += [
        _realised(name, measures.outcome(_tabulated(policy, rows), policy.threshold))
        for name, rows in sets.items()
    ]
    text = (
        "Sent: share of the requests that go to the cloud. Risk: share of wrong answers among those kept. "
        "Right but sent: answers of the edge that were right and went to the cloud all the same. Answered "
        "rightly: share of all requests under this policy; beside it what the edge and the cloud answer "
        "rightly alone, and the policy's share as a part of the cloud's. The held-out half chose or checked "
        "the threshold; test and shifted rows had no part in it. A promise holds for requests like those of "
        "the calibration, and says nothing of shifted ones."
    )
    return Part("Promised and realised", text, heads, rows)


def _realised(name: str, found: Outcome) -> list[str]:
    risk, risk_interval = found.risk or (None, None)
    relative = None if not found.cloud or found.quality is None else found.quality / found.cloud
    return [
        name,
        f"{found.rows:,}",
        _percent(found.sent[0]),
        _interval(found.sent[1]),
        f"{found.kept:,}",
        f"{found.errors:,}",
        _percent(risk),
        _interval(risk_interval),
        f"{found.needless:,}",
        *(_percent(value) for value in (found.quality, found.edge, found.cloud, relative)),
    ]


def _calibration(policy: Policy, sets: Mapping[str, Sequence[Answered]], shown: str) -> Part | None:
    rows, pictures = [], {}
    for name, answered in sets.items():
        before = measures.raw_confidence(answered, policy)
        after = measures.fitted_confidence(answered, policy)
        if before is None or after is None:
            continue
        found = measures.worth(_tabulated(policy, answered), policy.score)
        auroc = UNKNOWN if found is None else f"{found.auroc:.3f}"
        rows.append([name, f"{before.error:.3f}", f"{after.error:.3f}", auroc])
        if name == shown:
            pictures["reliability diagram"] = plots.reliability_diagram(before, after)
    if not rows:
        return None
    text = (
        "Before: the probability that the model gives its whole answer. After: 1 - P(error) of the policy. "
        "ECE is the mean distance between what is said and what is right, over ten bins. AUROC is the chance "
        f"that a right answer scores higher than a wrong one. The picture shows the {shown} rows, with a dot "
        "for each bin; the larger the dot, the more answers it stands for."
    )
    return Part(
        "How sure, and how often right", text, ("", "ECE before", "ECE after", "AUROC"), rows, pictures
    )


def _risk(policy: Policy, rows: Sequence[Answered], shown: str) -> Part | None:
    curves = {
        name: measures.risk_coverage(tabled)
        for name, tabled in _by_score(policy, rows).items()
        if tabled.kept_ever.any()
    }
    if policy.score not in curves:
        return None
    found = measures.outcome(_tabulated(policy, rows), policy.threshold)
    promised = policy.promise.risk if isinstance(policy.promise, RiskPromise) else None
    point = (1 - found.sent[0], found.risk[0] if found.risk else 0.0)
    steps = [share / 100 for share in (20, 40, 60, 80, 90, 100)]
    table_rows = [
        [name, *(_at(curve, share) for share in steps), f"{curve[1].mean():.4f}"]
        for name, curve in curves.items()
    ]
    text = (
        f"Share of wrong answers among those kept, if so many of all requests are kept, on the {shown} rows. "
        "AURC is its mean over all numbers of answers kept; less is better."
    )
    heads = ("", *(f"{_percent(share, 0)} kept" for share in steps), "AURC")
    picture = {"risk against coverage": plots.risk_coverage_plot(curves, point, promised)}
    return Part("Risk against coverage", text, heads, table_rows, picture)


def _at(curve: tuple[np.ndarray, np.ndarray], share: float) -> str:
    coverages, risks = curve
    # No more is ever kept than what is not the deferral answer.
    return _percent(float(np.interp(share, coverages, risks))) if share <= coverages[-1] else UNKNOWN


def _quality(policy: Policy, rows: Sequence[Answered], shown: str) -> Part | None:
    tabled = _tabulated(policy, rows)
    if tabled.cloud_right is None:
        return None
    share, quality = measures.point(tabled, policy.threshold)
    curves = {name: measures.quality_curve(each) for name, each in _by_score(policy, rows).items()}
    curves["oracle"] = measures.oracle_curve(tabled)
    edge, cloud = float(tabled.right.mean()), float(tabled.cloud_right.mean())
    random = np.array([0.0, 1.0]), np.array([edge, cloud])
    points = {"the policy": (share, quality or 0.0)}
    if policy.deferral is not None:
        alone, right = measures.point(_tabulated(policy, rows, "deferral"), 1.0)
        points[f"{policy.deferral} alone"] = (alone, right or 0.0)
    points |= {"the small model alone": (0.0, edge), "the large model alone": (1.0, cloud)}
    table_rows = [[name, _percent(sent), _percent(value)] for name, (sent, value) in points.items()]
    table_rows += [
        [f"{name}, as many sent", _percent(share), _percent(float(np.interp(share, *curve)))]
        for name, curve in {**curves, "at random": random}.items()
    ]
    picture = plots.quality_plot(curves, measures.quality_band(tabled), points, random)
    text = (
        f"Share of the {shown} requests that are answered rightly, by the share sent to the cloud, the least "
        "sure first. The oracle knows which answers only the cloud has right. The band is a 95 % bootstrap "
        f"over rows.{_loss(quality or 0.0, edge)}"
    )
    return Part(
        "Quality against what is sent", text, ("", "sent", "answered rightly"), table_rows,
        {"quality against share sent": picture},
    )  # fmt: skip


def _loss(quality: float, edge: float) -> str:
    """Say so if sending requests to the cloud makes fewer of them right."""
    if quality >= edge:
        return ""
    return (
        f" Here the policy answers fewer requests rightly than the edge alone ({_percent(quality)}, "
        f"{_percent(edge)}): of the requests that are sent the cloud has fewer right than the edge had. The "
        "promised risk is of what the edge keeps, and this cloud is no help; take a better one, or let the "
        "edge answer all."
    )


def _scores(policy: Policy, calibration: Sequence[Answered]) -> Part | None:
    found = measures.worths(calibration, policy.deferral)
    if not found:
        return None
    text = (
        "On all calibration rows; deferral answers are left out. Who chooses another score by this table "
        "chooses on these rows, so that its promise needs new ones."
    )
    rows = [[each.name, f"{each.auroc:.3f}", f"{each.area:.4f}", NAMES[each.name].doc] for each in found]
    return Part("All scores", text, ("", "AUROC", "AURC", "what it is"), rows)


def _by_score(policy: Policy, rows: Sequence[Answered]) -> dict[str, Table]:
    """Return the rows by the policy's score, and by entropy if it is known."""
    found = {policy.score: _tabulated(policy, rows)}
    if all(row.tokens.entropies is not None for row in rows):
        found.setdefault(_ENTROPY, _tabulated(policy, rows, _ENTROPY))
    return found


def _tabulated(policy: Policy, rows: Sequence[Answered], score: str | None = None) -> Table:
    return tabulate(rows, score or policy.score, policy.deferral)


# Words


def _percent(value: float | None, digits: int = 1) -> str:
    return UNKNOWN if value is None else f"{100 * value:.{digits}f} %"


def _interval(value: Interval | None) -> str:
    return UNKNOWN if value is None else f"{100 * value[0]:.1f} to {100 * value[1]:.1f}"
