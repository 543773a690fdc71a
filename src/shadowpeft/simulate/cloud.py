"""The cloud of a simulation: its slots, the network before it, its failures, and how it is called."""

from collections.abc import Generator
from typing import Any, Literal

import simpy

from shadowpeft.serve.breaker import CONNECT, PAUSE, TRIES, Breaker
from shadowpeft.simulate.arrivals import Arrivals, Outages
from shadowpeft.simulate.settings import System

# What SimPy runs: it yields events, and returns a value.
Process = Generator[simpy.Event, Any, Any]
# How a try of a call ended: it may be tried again, or not.
Try = Literal["answered", "again", "failed"]


class Cloud:
    """A number of slots that answer, and what lies between them and the robots.

    A call is made as the gateway makes it: three tries with pauses of chance, a circuit breaker for each
    robot, and the longest silence of `upstream_timeout`. The cloud is silent until it begins to answer.

    Args:
        env: the simulation's clock.
        system: the system.
        arrivals: what chance decides.
        outages: when the cloud is away.
    """

    def __init__(self, env: simpy.Environment, system: System, arrivals: Arrivals, outages: Outages) -> None:
        self._env, self._system, self._arrivals, self._outages = env, system, arrivals, outages
        self._slots = simpy.Resource(env, system.cloud_slots)
        self._breakers: dict[int, Breaker] = {}
        self.asked = 0.0
        # When each answer was begun and ended.
        self.held: list[tuple[float, float]] = []

    def call(self, at: int, seconds: float) -> Process:
        """Answer the request `at`, which takes a slot for so many seconds; return whether it was answered."""
        breaker = self._breaker(int(self._arrivals.robots[at]))
        for attempt in range(TRIES):
            if not breaker.lets_in():
                return False
            ended: Try = yield from self._try(at, attempt, seconds)
            if ended == "answered":
                breaker.succeeded()
                return True
            breaker.failed()
            if ended == "failed" or attempt + 1 == TRIES:
                return False
            yield self._env.timeout(self._arrivals.pauses[at, attempt] * PAUSE * 2**attempt)
        return False

    def _breaker(self, robot: int) -> Breaker:
        if robot not in self._breakers:
            self._breakers[robot] = Breaker(clock=lambda: self._env.now)
        return self._breakers[robot]

    def _try(self, at: int, attempt: int, seconds: float) -> Process:
        env, system = self._env, self._system
        one_way = system.round_trip_ms / 2000
        up, down = system.transfer()
        if self._outages.is_away(env.now):
            yield env.timeout(min(CONNECT, system.upstream_timeout))
            return "again"
        if self._arrivals.losses[at, attempt] < system.lost:
            yield env.timeout(2 * one_way)
            return "again"
        yield env.timeout(one_way + up + self._arrivals.jitters[at, attempt])
        if not (yield from self._served(seconds)):
            return "failed"
        yield env.timeout(one_way + down)
        return "answered"

    def _served(self, seconds: float) -> Process:
        """Wait for a slot and hold it; return whether the caller was still there when it was free."""
        env = self._env
        self.asked += seconds
        with self._slots.request() as slot:
            yield slot | env.timeout(self._system.upstream_timeout)
            if not slot.triggered:
                return False
            began = env.now
            yield env.timeout(seconds)
            self.held.append((began, env.now))
        return True
