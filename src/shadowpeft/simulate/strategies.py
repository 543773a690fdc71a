"""Who answers what: the ways of running the system that a simulation compares."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shadowpeft.errors import DataError
from shadowpeft.route.answered import Answered
from shadowpeft.route.policy import Policy
from shadowpeft.simulate.answers import Answers, answers_of, cloud_of, kept_of, matched
from shadowpeft.simulate.settings import System

CLOUD_ONLY, OTHER_CLOUD = "cloud only", "another cloud only"
EDGE_ONLY, POLICY, RANDOM = "edge only", "policy", "at random, as many sent"
SMALL, SMALL_POLICY = "small model only", "small model, its policy"


@dataclass(frozen=True)
class Strategy:
    """A way of answering requests.

    Attributes:
        name: what it is called.
        kept: probability, for each row, that the edge's answer is given; it is 0 or 1 but for sending at
            random.
        edge: the edge's answers; `None` if requests go to the cloud at once.
        cloud: the cloud's answers; `None` if nothing is ever sent.
    """

    name: str
    kept: np.ndarray
    edge: Answers | None
    cloud: Answers | None

    @property
    def sent(self) -> float:
        """Share of the rows that go to the cloud."""
        return float(1 - self.kept.mean())

    @property
    def right(self) -> float:
        """Share of the rows that are answered rightly while nothing fails."""
        edge = np.zeros(len(self.kept)) if self.edge is None else self.edge.right
        cloud = np.zeros(len(self.kept)) if self.cloud is None else self.cloud.right
        return float((self.kept * edge + (1 - self.kept) * cloud).mean())


def strategies_of(
    rows: Sequence[Answered],
    policy: Policy,
    system: System,
    small: Sequence[Answered] = (),
    small_policy: Policy | None = None,
    other_cloud: Sequence[Answered] = (),
) -> list[Strategy]:
    """Return all strategies that the rows allow.

    Args:
        rows: what the edge answered, with what the cloud made of it.
        policy: says which of the edge's answers are kept.
        system: its seconds stand in for measured ones where they are given.
        small: answers of a small model that was trained by itself, to the same rows.
        small_policy: its policy; its requests are sent to the same cloud.
        other_cloud: answers of another large model, to the same rows.

    Raises:
        UserError: rows do not fit each other or the policy, or lack what is needed.
    """
    if not rows:
        raise DataError("there are no rows to replay")
    edge = answers_of(rows, system.edge_seconds, "edge", policy.deferral)
    cloud = cloud_of(rows, system.cloud_seconds)
    kept = kept_of(rows, policy).astype(float)
    never, always = np.zeros(len(rows)), np.ones(len(rows))
    found = [Strategy(CLOUD_ONLY, never, None, cloud)]
    if other_cloud:
        same = matched(other_cloud, rows, "the other cloud")
        other = answers_of(same, system.cloud_seconds, "cloud", None)
        found.append(Strategy(OTHER_CLOUD, never, None, other))
    found += [
        Strategy(EDGE_ONLY, always, edge, None),
        Strategy(POLICY, kept, edge, cloud),
        Strategy(RANDOM, np.full(len(rows), kept.mean()), edge, cloud),
    ]
    if policy.deferral is not None:
        found.append(Strategy(f"{policy.deferral} alone", 1.0 - edge.defers, edge, cloud))
    if small:
        same = matched(small, rows, "the small model")
        deferral = policy.deferral if small_policy is None else small_policy.deferral
        answers = answers_of(same, system.edge_seconds, "edge", deferral)
        found.append(Strategy(SMALL, always, answers, None))
        if small_policy is not None:
            found.append(Strategy(SMALL_POLICY, kept_of(same, small_policy).astype(float), answers, cloud))
    return found
