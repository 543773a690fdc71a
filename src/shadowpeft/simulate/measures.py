"""What a simulation came to: rightness, waiting, load and cost, as figures and as the rows of a file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shadowpeft.simulate.arrivals import Arrivals
from shadowpeft.simulate.fleet import CLOUD, INSTEAD, KEPT, NOBODY, Log
from shadowpeft.simulate.settings import WARM_UP, System
from shadowpeft.simulate.strategies import Strategy


@dataclass(frozen=True)
class Figures:
    """A strategy's figures in one simulation, or their means over several.

    All shares are of the requests that are counted. Seconds are from a request to its answer.

    Attributes:
        right: share answered rightly; a request without an answer is not.
        unanswered: share that got no answer.
        sent: share that was sent to the cloud, whatever came of it.
        instead: share that the edge answered because the cloud failed.
        false_keeps: share of wrong answers of the edge that were kept.
        false_deferrals: share that was sent although the edge's answer was right and no deferral answer.
        mean: mean seconds of the answers.
        p50: their median.
        p95: what 95 % of them do not exceed.
        p99: what 99 % do not exceed.
        cloud_load: slots of the cloud that are busy on average.
        offered: slots that would be busy if there were always one free; where it reaches the number of slots
            the queue grows until callers give up, and waiting depends on how long is simulated.
        edge_load: share of the time in which a robot's own processor answers.
        cost: price of 1,000 requests.
    """

    right: float
    unanswered: float
    sent: float
    instead: float
    false_keeps: float
    false_deferrals: float
    mean: float
    p50: float
    p95: float
    p99: float
    cloud_load: float
    offered: float
    edge_load: float
    cost: float

    def is_overloaded(self, system: System) -> bool:
        """Return whether requests come faster than the cloud or a robot can answer them."""
        return self.offered >= system.cloud_slots or self.edge_load >= 1


def figures_of(system: System, strategy: Strategy, arrivals: Arrivals, log: Log) -> Figures:
    """Measure a simulation; the first tenth of the requests is left out, but for what is offered and
    what it costs, which are of all of them."""
    first = int(WARM_UP * len(arrivals))
    by, seconds, rows = log.by[first:], log.seconds[first:], arrivals.rows[first:]
    right = _right(strategy, by, rows)
    by_edge = np.zeros(len(rows), dtype=bool) if strategy.edge is None else strategy.edge.right[rows]
    may_keep = np.ones(len(rows), dtype=bool) if strategy.edge is None else ~strategy.edge.defers[rows]
    answered = seconds[by != NOBODY]
    # Where nothing was answered there is no time to speak of.
    p50, p95, p99 = np.quantile(answered, (0.5, 0.95, 0.99)) if len(answered) else [np.nan] * 3
    span = float(arrivals.times[-1])
    edge = 0.0 if strategy.edge is None else float(strategy.edge.seconds.mean()) * system.edge_scale
    return Figures(
        right=float(right.mean()),
        unanswered=float((by == NOBODY).mean()),
        sent=float((by != KEPT).mean()),
        instead=float((by == INSTEAD).mean()),
        false_keeps=float(((by == KEPT) & ~right).mean()),
        false_deferrals=float(((by != KEPT) & by_edge & may_keep).mean()),
        mean=float(answered.mean()) if len(answered) else float("nan"),
        p50=float(p50),
        p95=float(p95),
        p99=float(p99),
        # Neither while the queues fill nor while they empty, when no request comes any more.
        cloud_load=log.busy(float(arrivals.times[first]), span),
        offered=float(log.asked / span),
        edge_load=edge * system.per_minute / 60,
        cost=float(_cost(system, strategy, log, len(arrivals), span)),
    )


def _right(strategy: Strategy, by: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return which requests were answered rightly."""
    right = np.zeros(len(rows), dtype=bool)
    for who, answers in ((KEPT, strategy.edge), (INSTEAD, strategy.edge), (CLOUD, strategy.cloud)):
        if answers is not None:
            right |= (by == who) & answers.right[rows]
    return right


def _cost(system: System, strategy: Strategy, log: Log, requests: int, span: float) -> float:
    """Return the price of 1,000 requests."""
    edge = 0.0 if strategy.edge is None else system.edge_price
    # Of each pair of a thousand requests and a price of a thousand, one thousand falls away.
    cloud = system.cloud_price * log.calls / requests
    rented = 0.0 if strategy.cloud is None else system.slot_hour_price * system.cloud_slots * span / 3600
    gigabytes = log.calls * (system.request_kb + system.answer_kb) / 1e6
    return edge + cloud + 1000 * (rented + system.gigabyte_price * gigabytes) / requests


def mean_of(several: Sequence[Figures]) -> Figures:
    """Return the mean of each figure."""
    values = [asdict(one) for one in several]
    return Figures(**{name: float(np.mean([one[name] for one in values])) for name in values[0]})


def row_of(strategy: str, robots: int, seed: int, figures: Figures) -> dict[str, Any]:
    """Return a line of the file of rows; a figure that does not exist is `None`."""
    values = {name: value if np.isfinite(value) else None for name, value in asdict(figures).items()}
    return {"strategy": strategy, "robots": robots, "seed": seed, **values}


@dataclass(frozen=True)
class Once:
    """All rows once, by one robot, one after the other, while nothing fails and nobody else asks.

    Attributes:
        strategy: its name.
        right: share answered rightly.
        sent: share sent to the cloud.
        seconds: of all rows together.
    """

    strategy: str
    right: float
    sent: float
    seconds: float


def once(system: System, strategy: Strategy) -> Once:
    """Work out what the rows take one after the other."""
    up, down = system.transfer()
    network = (system.round_trip_ms + system.jitter_ms) / 1000 + up + down
    total = 0.0
    if strategy.edge is not None:
        total += float(strategy.edge.seconds.sum()) * system.edge_scale
    if strategy.cloud is not None:
        total += float(((1 - strategy.kept) * (network + strategy.cloud.seconds * system.cloud_scale)).sum())
    return Once(strategy.name, strategy.right, strategy.sent, total)
