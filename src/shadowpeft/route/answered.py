"""Rows that a model has answered, with what it says of each token: what a policy is calibrated on.

One JSON object a line, so that answers once computed serve for every promise, score and report.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shadowpeft.errors import DataError
from shadowpeft.route.scores import TokenScores, is_deferral, score
from shadowpeft.storage import atomic


@dataclass(frozen=True)
class Answerer:
    """Who answered.

    Attributes:
        model: the base, or what an endpoint calls it.
        adapter: the adapter's name; `None` without one, or where an endpoint does not tell.
        adapter_hash: SHA-256 of its weights and settings; `None` likewise.
        endpoint: address of the server that answered; `None` if it was the model itself.
    """

    model: str
    adapter: str | None = None
    adapter_hash: str | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class Answered:
    """One row with its answer.

    Attributes:
        where: file and line of the row.
        answer: text of the answer.
        expected: the right one.
        right: whether the answer is right.
        tokens: what the model says of the answer's tokens.
        by: who answered.
        cloud_right: whether the cloud's answer to the row is right; `None` if it was not asked.
        seconds: how long the answer took, alone; `None` if it was not measured.
        cloud_seconds: the same of the cloud's.
    """

    where: str
    answer: str
    expected: str
    right: bool
    tokens: TokenScores
    by: Answerer
    cloud_right: bool | None = None
    seconds: float | None = None
    cloud_seconds: float | None = None


@dataclass(frozen=True)
class Table:
    """Answered rows as columns, for one score.

    Attributes:
        scores: of the answers, -inf for those that are never kept: the deferral answer and empty ones.
        right: whether each answer is right.
        cloud_right: whether the cloud's is; `None` if that is not known of every row.
    """

    scores: np.ndarray
    right: np.ndarray
    cloud_right: np.ndarray | None

    @property
    def wrong(self) -> np.ndarray:
        """Whether each answer is wrong."""
        return ~self.right

    @property
    def kept_ever(self) -> np.ndarray:
        """Whether each row has an answer that a threshold may keep."""
        return np.isfinite(self.scores)

    def take(self, indices: np.ndarray) -> "Table":
        """Return some of the rows."""
        cloud = None if self.cloud_right is None else self.cloud_right[indices]
        return Table(self.scores[indices], self.right[indices], cloud)


def tabulate(rows: Sequence[Answered], name: str, deferral: str | None) -> Table:
    """Score answered rows.

    Args:
        rows: the rows.
        name: the score's.
        deferral: the deferral answer; its rows have the score -inf, but for the score `deferral` itself.

    Raises:
        ConfigError: there is no such score.
        DataError: a row lacks what the score needs.
    """
    scores = []
    for row in rows:
        try:
            found = score(name, row.tokens, row.answer, deferral)
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        # As `Policy.decide`: neither is ever kept.
        never = is_deferral(row.answer, deferral) or len(row.tokens.logprobs) == 0
        scores.append(-math.inf if never else found)
    cloud = [row.cloud_right for row in rows]
    known = None if None in cloud else np.array(cloud, dtype=bool)
    return Table(np.array(scores, dtype=float), np.array([row.right for row in rows], dtype=bool), known)


def answerer_of(rows: Sequence[Answered]) -> Answerer:
    """Return who answered all rows.

    Raises:
        DataError: several did.
    """
    found = list(dict.fromkeys(row.by for row in rows))
    if len(found) > 1:
        raise DataError(
            f"expected the answers of one model, got those of {found[0].model} ({found[0].adapter}) and "
            f"{found[1].model} ({found[1].adapter}); calibrate each by itself"
        )
    return found[0]


def write(rows: Iterable[Answered], path: str | Path) -> None:
    """Write answered rows as JSON lines.

    Raises:
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    lines = "".join(json.dumps(_fields(row), ensure_ascii=False) + "\n" for row in rows)
    atomic.write_together(path.parent, {path.name: atomic.text(lines)})


def _fields(row: Answered) -> dict[str, Any]:
    fields = dataclasses.asdict(row)
    for name, values in fields.pop("tokens").items():
        fields[name] = None if values is None else [float(value) for value in values]
    return {name: value for name, value in fields.items() if value is not None}


def is_answered(fields: Mapping[str, Any]) -> bool:
    """Return whether a row of a file is an answered one."""
    return "answer" in fields and "logprobs" in fields


def read(rows: Iterable[tuple[Mapping[str, Any], str]]) -> list[Answered]:
    """Return the answered rows of a file.

    Args:
        rows: the fields of each line, and where it stands.

    Raises:
        DataError: a field is missing or is not what it must be.
    """
    return [_read(fields, where) for fields, where in rows]


def _read(fields: Mapping[str, Any], where: str) -> Answered:
    try:
        by = fields.get("by", {"model": "unknown"})
        return Answered(
            where=str(fields.get("where", where)),
            answer=_as(str, fields["answer"], "answer"),
            expected=_as(str, fields.get("expected", ""), "expected"),
            right=_as(bool, fields["right"], "right"),
            tokens=TokenScores(
                _numbers(fields["logprobs"], "logprobs") or (),
                _numbers(fields.get("margins"), "margins"),
                _numbers(fields.get("entropies"), "entropies"),
            ),
            by=Answerer(**{entry.name: by.get(entry.name) for entry in dataclasses.fields(Answerer)}),
            cloud_right=_as(bool | None, fields.get("cloud_right"), "cloud_right"),
            seconds=_as(float | int | None, fields.get("seconds"), "seconds"),
            cloud_seconds=_as(float | int | None, fields.get("cloud_seconds"), "cloud_seconds"),
        )
    except KeyError as error:
        raise DataError(
            f"{where}: an answered row needs the field {error.args[0]!r}; write such rows with "
            "shadowpeft calibrate --model or --endpoint"
        ) from None
    except (TypeError, AttributeError) as error:
        raise DataError(f"{where}: this is no answered row: {error}") from None


def _as(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name!r} must not be {type(value).__name__}")
    return value


def _numbers(values: Any, name: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise TypeError(f"{name!r} must be a list of numbers")
    return tuple(map(float, values))
