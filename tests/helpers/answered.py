"""Answered rows that are made up."""

import numpy as np

from shadowpeft.route.answered import Answered, Answerer
from shadowpeft.route.scores import TokenScores

BY = Answerer("tiny", "run/adapter", "ab" * 32)
REMOTE = "[REMOTE]"


def made_up(count, seed=0, shift=2.0, deferred=0.0, cloud=0.97):
    """Rows whose answers are the likelier right the larger their margin; some are the deferral answer.

    The probability of an error is 1 / (1 + exp(2 margin + shift)), for a margin from a normal distribution.
    """
    random = np.random.default_rng(seed)
    margins = random.normal(size=count)
    right = random.random(count) > 1 / (1 + np.exp(2 * margins + shift))
    remote = random.random(count) < deferred
    clouds = random.random(count) < cloud
    return [
        Answered(
            where=f"dev.jsonl:{at + 1}",
            answer=REMOTE if remote[at] else "play music",
            expected="play music" if right[at] and not remote[at] else "stop",
            right=bool(right[at] and not remote[at]),
            tokens=TokenScores([-0.1, -0.2], [float(margins[at]), float(margins[at]) + 1], [0.3, 0.4]),
            by=BY,
            cloud_right=bool(clouds[at]),
            seconds=0.01,
            cloud_seconds=0.04,
        )
        for at in range(count)
    ]


def true_risk(threshold, shift=2.0):
    """The share of errors among answers whose margin is at least a threshold, by integration."""
    margins = np.linspace(threshold, 8, 20_001)
    density = np.exp(-(margins**2) / 2)
    return float((density / (1 + np.exp(2 * margins + shift))).sum() / density.sum())
