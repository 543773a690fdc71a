"""What a simulated system is like. Imports nothing heavy, so that `--help` comes at once."""

import math
from dataclasses import dataclass, field
from typing import Literal

from shadowpeft.checked_fields import SEVERAL, check, whole_numbers, within
from shadowpeft.errors import ConfigError

# Requests at the start that are left out of the figures: the queues are empty there.
WARM_UP = 0.1
MOST_ROBOTS = 1_000_000
# Outages that one simulation may have; more only take time.
MOST_OUTAGES = 1_000_000


@dataclass(frozen=True)
class System:
    """Robots, network, cloud, prices and failures.

    Raises:
        ConfigError: a value is no number or out of range.
    """

    robots: str = field(default="1,100,1000", metadata=SEVERAL)
    """Sizes of the fleet, several numbers with commas; each is simulated by itself."""
    per_minute: float = within(2.0, least=0.001, most=1e6)
    """Requests of one robot in a minute, at random times."""
    requests: int = within(10_000, least=100)
    """Requests of the whole fleet in one simulation; the first tenth fills the queues and is not counted."""
    seeds: int = within(3, least=1)
    """Simulations of each fleet; the figures are their mean."""
    edge_seconds: float | None = within(None, above=0, below=math.inf)
    """Seconds of every answer of the edge, in place of the measured ones."""
    cloud_seconds: float | None = within(None, above=0, below=math.inf)
    """Seconds of every answer of the cloud, in place of the measured ones."""
    edge_scale: float = within(1.0, above=0, below=math.inf)
    """How many times as long the edge takes as measured: a robot's processor is slower."""
    cloud_scale: float = within(1.0, above=0, below=math.inf)
    """How many times as long the cloud takes as measured: several answers at once are slower each."""
    cloud_slots: int = within(8, least=1)
    """Answers that the cloud writes at once; other requests wait for a slot."""
    round_trip_ms: float = within(40.0, least=0, below=math.inf)
    """Milliseconds from a robot to the cloud and back, without the bytes."""
    jitter_ms: float = within(10.0, least=0, below=math.inf)
    """Mean of what is added to it by chance (exponential)."""
    up_mbit: float = within(10.0, least=0.001, below=math.inf)
    """Megabits a second from a robot to the cloud."""
    down_mbit: float = within(50.0, least=0.001, below=math.inf)
    """Megabits a second from the cloud to a robot."""
    request_kb: float = within(1.0, least=0, below=math.inf)
    """Size of a request in 1,000 bytes; a picture makes it hundreds."""
    answer_kb: float = within(1.0, least=0, below=math.inf)
    """Size of an answer in 1,000 bytes."""
    lost: float = within(0.0, least=0, below=1)
    """Share of the tries of a call that fail at once; a call is tried three times, as the gateway does."""
    away: float = within(0.0, least=0, below=1)
    """Share of the time in which the cloud is away."""
    away_minutes: float = within(5.0, above=0, below=math.inf)
    """Mean minutes that it is away at a time."""
    upstream_timeout: float = within(60.0, above=0, below=math.inf)
    """Seconds that the cloud may be silent before it begins to answer, as in shadowpeft serve."""
    on_cloud_failure: Literal["answer", "503"] = "answer"
    """What becomes of a deferred request when the cloud fails: answer for the edge's answer, 503 for none."""
    edge_price: float = within(0.0, least=0, below=math.inf)
    """Price of 1,000 answers of the edge."""
    cloud_price: float = within(1.0, least=0, below=math.inf)
    """Price of 1,000 answers of the cloud."""
    slot_hour_price: float = within(0.0, least=0, below=math.inf)
    """Price of a slot of the cloud for an hour, rented all the time."""
    gigabyte_price: float = within(0.0, least=0, below=math.inf)
    """Price of a gigabyte between robots and cloud."""
    seed: int = within(0, least=0)
    """Seed of the first simulation."""

    def __post_init__(self) -> None:
        check(self)
        self.fleets()

    def fleets(self) -> list[int]:
        """Read the sizes of the fleet.

        Raises:
            ConfigError: one is no whole number of 1 or more, or too large.
        """
        found = list(dict.fromkeys(whole_numbers("robots", self.robots, least=1)))
        if max(found) > MOST_ROBOTS:
            raise ConfigError(f"robots must be {MOST_ROBOTS:,} at most, got {max(found)}")
        return found

    def hours(self, robots: int) -> float:
        """Return how many hours a simulation of a fleet covers, on average."""
        return self.requests / (robots * self.per_minute) / 60

    def transfer(self) -> tuple[float, float]:
        """Return the seconds that a request's bytes take to the cloud, and an answer's back."""
        return self.request_kb * 0.008 / self.up_mbit, self.answer_kb * 0.008 / self.down_mbit
