"""Small simulated systems."""

import numpy as np

from shadowpeft.simulate.answers import Answers
from shadowpeft.simulate.settings import System
from shadowpeft.simulate.strategies import Strategy

# A network that takes no time.
NEAR = {"round_trip_ms": 0.0, "jitter_ms": 0.0, "request_kb": 0.0, "answer_kb": 0.0}


def near(**settings):
    """A system whose network takes no time."""
    return System(**{"robots": "1", "seeds": 1, **NEAR, **settings})


def answers(right, seconds, defers=False):
    """A model's answers; a single value stands for all rows."""
    right = np.asarray(right, dtype=bool)
    return Answers(right, np.full(len(right), seconds, float), np.full(len(right), defers, bool))


def strategy(kept, edge=None, cloud=None, name="policy"):
    return Strategy(name, np.asarray(kept, dtype=float), edge, cloud)
