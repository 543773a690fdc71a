"""The rows that a simulation replays: what edge and cloud have right, and how long each answer takes."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.route.answered import Answered, answerer_of, tabulate
from shadowpeft.route.policy import Policy
from shadowpeft.route.scores import is_deferral


@dataclass(frozen=True)
class Answers:
    """One model's answers as columns, a row each; seconds are of the answer alone, nobody waiting.

    Attributes:
        right: whether each answer is right.
        seconds: how long each takes.
        defers: whether each is the deferral answer or empty, which no policy keeps.
    """

    right: np.ndarray
    seconds: np.ndarray
    defers: np.ndarray


def answers_of(rows: Sequence[Answered], given: float | None, role: str, deferral: str | None) -> Answers:
    """Return one model's answers as columns.

    Args:
        rows: the answered rows.
        given: seconds of every answer; `None` for the measured ones.
        role: edge or cloud, for messages.
        deferral: the deferral answer.

    Raises:
        ConfigError: no row has measured seconds and none are given.
    """
    return Answers(
        right=np.array([row.right for row in rows]),
        seconds=seconds_of([row.seconds for row in rows], given, role),
        defers=np.array([is_deferral(row.answer, deferral) or not row.tokens.logprobs for row in rows]),
    )


def cloud_of(rows: Sequence[Answered], given: float | None) -> Answers:
    """Return as columns what the cloud made of rows that an edge answered.

    Args:
        rows: the edge's answers.
        given: seconds of every answer of the cloud; `None` for the measured ones.

    Raises:
        DataError: it is not known whether the cloud's answers are right.
        ConfigError: no row has measured seconds and none are given.
    """
    unknown = [row.where for row in rows if row.cloud_right is None]
    if unknown:
        raise DataError(
            f"{unknown[0]}: it is not known whether the cloud's answer is right; calibrate with an adapter, "
            "--cloud-endpoint or --cloud-answers, whose answers.jsonl tells it"
        )
    return Answers(
        right=np.array([bool(row.cloud_right) for row in rows]),
        seconds=seconds_of([row.cloud_seconds for row in rows], given, "cloud"),
        defers=np.zeros(len(rows), dtype=bool),
    )


def seconds_of(measured: Sequence[float | None], given: float | None, role: str) -> np.ndarray:
    """Return the seconds of every row; one that was not measured takes those of a measured one, in turn.

    Args:
        measured: of each row; `None` where it was not measured.
        given: seconds of every row in place of these.
        role: edge or cloud, for the message.

    Raises:
        ConfigError: no row was measured and no seconds are given.
        DataError: a measured time is no number above 0.
    """
    if given is not None:
        return np.full(len(measured), given)
    if any(isinstance(each, bool) for each in measured):
        raise DataError(f"the {role}'s seconds must be numbers above 0, got true or false")
    known = np.array([each for each in measured if each is not None], dtype=float)
    if not len(known):
        raise ConfigError(
            f"no row says how long the {role}'s answer took; measure some with shadowpeft calibrate --timed, "
            f"or give --{role}-seconds"
        )
    wrong = known[~(np.isfinite(known) & (known > 0))]
    if len(wrong):
        raise DataError(f"the {role}'s seconds must be numbers above 0, got {wrong[0]:g}")
    found = np.array([np.nan if each is None else each for each in measured], dtype=float)
    missing = np.isnan(found)
    found[missing] = np.resize(known, missing.sum())
    return found


def kept_of(rows: Sequence[Answered], policy: Policy) -> np.ndarray:
    """Return which answers a policy keeps, as `Policy.decide` has it.

    Raises:
        ConfigError: the rows are of an adapter that the policy was not made for.
        DataError: a row lacks what the policy's score reads, or several models have answered.
    """
    by = answerer_of(rows)
    policy.refuse_other(by.adapter_hash)
    if None in (policy.adapter_hash, by.adapter_hash) and policy.model != by.model:
        warnings.warn(
            f"the policy was calibrated on answers of {policy.model}, and the rows are answers of "
            f"{by.model}; see that each policy stands with the rows of its own model",
            stacklevel=2,
        )
    return tabulate(rows, policy.score, policy.deferral).scores >= policy.threshold


def matched(rows: Sequence[Answered], to: Sequence[Answered], name: str) -> list[Answered]:
    """Return another model's answers to the same rows, in their order.

    Args:
        rows: the other model's.
        to: the rows that are replayed.
        name: of the other file, for the message.

    Raises:
        DataError: a row is not among them, is there twice, or has another right answer there; or several
            models have answered.
    """
    answerer_of(rows)
    for whose, some in ((name, rows), ("the data", to)):
        place, count = Counter(row.where for row in some).most_common(1)[0]
        if count > 1:
            raise DataError(
                f"{whose} must answer each row once, so that {name} can be laid beside the data; it answers "
                f"{place} {count} times"
            )
    by_place = {row.where: row for row in rows}
    missing = [row.where for row in to if row.where not in by_place]
    if missing:
        raise DataError(
            f"{name} must answer the same rows as the data: it lacks {len(missing):,} of {len(to):,}, "
            f"such as {missing[0]}, and has rows such as {rows[0].where}"
        )
    found = [by_place[row.where] for row in to]
    for mine, other in zip(to, found, strict=True):
        if mine.expected != other.expected:
            raise DataError(
                f"{name} must answer the same rows as the data: the right answer to {mine.where} is "
                f"{mine.expected!r} there and {other.expected!r} here"
            )
    return found
