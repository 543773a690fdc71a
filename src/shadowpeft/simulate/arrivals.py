"""What chance decides, drawn beforehand, so that every strategy meets the same requests and failures."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from shadowpeft.errors import ConfigError
from shadowpeft.serve.breaker import TRIES
from shadowpeft.simulate.settings import MOST_OUTAGES, System


@dataclass(frozen=True)
class Arrivals:
    """The requests of a fleet, by the time of their coming.

    Attributes:
        times: in seconds.
        robots: which robot asks.
        rows: which row it asks.
        keeps: a number from 0 to 1, which decides where the strategy leaves it to chance.
        jitters: seconds that the network adds to each try of a call.
        losses: a number from 0 to 1 for each try, which decides whether it fails at once.
        pauses: a share of the longest pause after each try.
    """

    times: np.ndarray
    robots: np.ndarray
    rows: np.ndarray
    keeps: np.ndarray
    jitters: np.ndarray
    losses: np.ndarray
    pauses: np.ndarray

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.times)


def arrivals(system: System, robots: int, rows: int, seed: int) -> Arrivals:
    """Draw the requests of a fleet: a Poisson process of each robot; all rows once, then all of them again.

    Args:
        system: the system.
        robots: size of the fleet.
        rows: how many rows there are.
        seed: of the generator.
    """
    random = np.random.default_rng([seed, robots])
    count = system.requests
    gaps = random.exponential(60 / (system.per_minute * robots), count)
    passes = -(-count // rows)
    return Arrivals(
        times=gaps.cumsum(),
        robots=random.integers(robots, size=count),
        # Whole passes over the rows, so that no row weighs more than another by chance.
        rows=np.concatenate([random.permutation(rows) for _ in range(passes)])[:count],
        keeps=random.random(count),
        jitters=random.exponential(system.jitter_ms / 1000, (count, TRIES)),
        losses=random.random((count, TRIES)),
        pauses=random.random((count, TRIES)),
    )


@dataclass(frozen=True)
class Outages:
    """The times in which the cloud is away.

    Attributes:
        starts: when each begins, in seconds.
        ends: when it ends.
    """

    starts: np.ndarray
    ends: np.ndarray

    def is_away(self, time: float) -> bool:
        """Return whether the cloud is away at a time."""
        at = bisect_right(self.starts, time) - 1
        return at >= 0 and time < self.ends[at]


def outages(system: System, seconds: float, robots: int, seed: int) -> Outages:
    """Draw outages for so many seconds: exponential times of being there and of being away in turn.

    Args:
        system: says what share of the time and how long at a time.
        seconds: how long the simulation lasts.
        robots: size of the fleet.
        seed: of the generator.

    Raises:
        ConfigError: there would be too many.
    """
    if system.away == 0:
        return Outages(np.empty(0), np.empty(0))
    random = np.random.default_rng([seed, robots, 1])
    away = 60 * system.away_minutes
    if seconds * system.away > MOST_OUTAGES * away:
        raise ConfigError(
            f"{seconds / 60:,.0f} minutes would have {seconds * system.away / away:,.0f} outages, expected "
            f"{MOST_OUTAGES:,} at most; give a longer --away-minutes or fewer --requests"
        )
    there = away * (1 - system.away) / system.away
    # It may be away from the first moment on.
    time = 0.0 if random.random() < system.away else random.exponential(there)
    starts, ends = [], []
    while time < seconds:
        starts.append(time)
        ends.append(time + random.exponential(away))
        time = ends[-1] + random.exponential(there)
    return Outages(np.array(starts), np.array(ends))
