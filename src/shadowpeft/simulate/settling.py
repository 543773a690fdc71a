"""How long a simulation must be: until its queues do not show any more that they were empty at the start."""

import math

from shadowpeft.simulate.measures import Figures
from shadowpeft.simulate.run import Result
from shadowpeft.simulate.settings import WARM_UP, System


def too_short(result: Result, robots: int) -> int | None:
    """Return how many requests a simulation of a fleet should have; `None` if it has as many.

    Args:
        result: the simulations.
        robots: size of the fleet.
    """
    system = result.system
    waits = [one for one in result.means(robots).values() if not one.is_overloaded(system)]
    needed = max((requests_for(system, one, robots) for one in waits), default=0)
    return needed if needed > system.requests else None


def requests_for(system: System, figures: Figures, robots: int) -> int:
    """Return with how many requests the queues of a fleet have settled before the first one is counted.

    Args:
        system: the system.
        figures: of a simulation that is not overloaded.
        robots: size of the fleet.
    """
    cloud = _settled(figures.offered, system.cloud_slots)
    # Each robot has a queue of its own.
    edges = robots * _settled(figures.edge_load, 1)
    return math.ceil(max(cloud, edges) / WARM_UP)


def _settled(busy: float, slots: int) -> float:
    """Return after how many requests a queue has filled and settled.

    As many come in one service time as there are slots busy. The queue M/M/c forgets how it began within
    1 / (1 - sqrt(load))^2 service times of a slot, divided by the slots: its relaxation time.
    """
    load = busy / slots
    return busy + load / (1 - math.sqrt(load)) ** 2
