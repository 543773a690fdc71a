"""One simulation: the requests of a fleet, answered by one strategy."""

from dataclasses import dataclass

import numpy as np
import simpy

from shadowpeft.simulate.arrivals import Arrivals, Outages
from shadowpeft.simulate.cloud import Cloud, Process
from shadowpeft.simulate.settings import System
from shadowpeft.simulate.strategies import Strategy

# Who answered: the edge, since its answer was kept; the cloud; the edge in place of a cloud that failed.
KEPT, CLOUD, INSTEAD, NOBODY = range(4)


@dataclass(frozen=True)
class Log:
    """What became of each request.

    Attributes:
        seconds: from its coming to its answer, or to its failure.
        by: who answered, one of `KEPT`, `CLOUD`, `INSTEAD` and `NOBODY`.
        held: when a slot of the cloud was taken and when it was free again, a row for each of its answers.
        asked: seconds of a slot that were asked for, also in vain.
    """

    seconds: np.ndarray
    by: np.ndarray
    held: np.ndarray
    asked: float

    @property
    def calls(self) -> int:
        """Return how many answers the cloud wrote."""
        return len(self.held)

    def busy(self, begin: float, end: float) -> float:
        """Return how many slots were busy between two times, on average."""
        within = np.clip(self.held, begin, end)
        return float((within[:, 1] - within[:, 0]).sum() / (end - begin))


class Fleet:
    """Robots that each answer one request after the other, with one cloud behind them.

    A request that waits for the cloud does not keep its robot from the next one.

    Args:
        system: the system.
        strategy: who answers what.
        arrivals: the requests.
        outages: when the cloud is away.
    """

    def __init__(self, system: System, strategy: Strategy, arrivals: Arrivals, outages: Outages) -> None:
        self._env = simpy.Environment()
        self._system, self._strategy, self._arrivals = system, strategy, arrivals
        self._cloud = Cloud(self._env, system, arrivals, outages)
        self._edges: dict[int, simpy.Resource] = {}
        self._seconds = np.zeros(len(arrivals))
        self._by = np.full(len(arrivals), NOBODY, dtype=np.int8)

    def run(self) -> Log:
        """Let all requests come and be answered."""
        self._env.process(self._coming())
        self._env.run()
        held = np.array(self._cloud.held, dtype=float).reshape(-1, 2)
        return Log(self._seconds, self._by, held, self._cloud.asked)

    def _coming(self) -> Process:
        for at, time in enumerate(self._arrivals.times):
            yield self._env.timeout(time - self._env.now)
            self._env.process(self._request(at))

    def _request(self, at: int) -> Process:
        self._by[at] = yield from self._answered(at)
        self._seconds[at] = self._env.now - self._arrivals.times[at]

    def _answered(self, at: int) -> Process:
        """Let a request be answered; return by whom."""
        strategy, row = self._strategy, self._arrivals.rows[at]
        if strategy.edge is not None:
            with self._edge(int(self._arrivals.robots[at])).request() as turn:
                yield turn
                yield self._env.timeout(strategy.edge.seconds[row] * self._system.edge_scale)
            if self._arrivals.keeps[at] < strategy.kept[row]:
                return KEPT
        assert strategy.cloud is not None
        seconds = strategy.cloud.seconds[row] * self._system.cloud_scale
        if (yield from self._cloud.call(at, seconds)):
            return CLOUD
        has_answer = strategy.edge is not None and self._system.on_cloud_failure == "answer"
        return INSTEAD if has_answer else NOBODY

    def _edge(self, robot: int) -> simpy.Resource:
        if robot not in self._edges:
            self._edges[robot] = simpy.Resource(self._env)
        return self._edges[robot]
