"""Who answers for a calibration: a model here with its adapter, or a server; and what the cloud would say."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError
from shadowpeft.evaluation.endpoint import Endpoint
from shadowpeft.evaluation.scored import Scored, expected_answers, scored_answers, scored_labels
from shadowpeft.route.answered import Answered, Answerer
from shadowpeft.route.identity import hash_of_files
from shadowpeft.storage import adapter_folder, hub_folder


class Role(Protocol):
    """Whoever answers rows."""

    def answer(self, rows: Sequence[Row], progress: bool = True) -> list[Scored]:
        """Answer rows, with the scores of the answers' tokens."""
        ...

    def within(self, tokens: int) -> "Role":
        """Return the same role with answers of at most so many tokens."""
        ...


@dataclass(frozen=True)
class LocalRole:
    """A model of this process.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        batch_size: rows at a time.
        labels: the possible answers, to choose the likeliest of; `None` to generate.
        max_length: tokens that prompt and answer may have together.
        max_new_tokens: tokens of an answer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    labels: Sequence[str] | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None

    def answer(self, rows: Sequence[Row], progress: bool = True) -> list[Scored]:
        """Answer rows, with the scores of the answers' tokens."""
        if self.labels is not None:
            return scored_labels(
                self.model, self.tokenizer, rows, self.labels, batch_size=self.batch_size, progress=progress
            )
        return scored_answers(
            self.model,
            self.tokenizer,
            rows,
            batch_size=self.batch_size,
            max_length=self.max_length,
            max_new_tokens=self.max_new_tokens,
            progress=progress,
        )

    def within(self, tokens: int) -> "LocalRole":
        """Return the same role with answers of at most so many tokens."""
        return replace(self, max_new_tokens=tokens)


@dataclass(frozen=True)
class ServerRole:
    """A server elsewhere.

    Attributes:
        endpoint: the server.
        workers: requests at a time.
        max_new_tokens: tokens of an answer.
    """

    endpoint: Endpoint
    workers: int
    max_new_tokens: int | None = None

    def answer(self, rows: Sequence[Row], progress: bool = True) -> list[Scored]:
        """Answer rows, with the scores of the answers' tokens."""
        return self.endpoint.answers(rows, self.max_new_tokens, self.workers, progress)

    def within(self, tokens: int) -> "ServerRole":
        """Return the same role with answers of at most so many tokens."""
        return replace(self, max_new_tokens=tokens)


def answered_rows(
    rows: Sequence[Row],
    edge: Role,
    by: Answerer,
    cloud: Role | None,
    cloud_column: str | None,
    timed: int = 0,
) -> list[Answered]:
    """Let the edge answer rows, and note whether the cloud has them right.

    Args:
        rows: rows that have an answer.
        edge: whoever's answers are to be kept or not.
        by: what is noted of it.
        cloud: whoever answers what is not kept, if it is to be asked.
        cloud_column: in its place, the column of the rows with its answers.
        timed: so many rows are answered again, one at a time, to note the seconds of each answer.

    Raises:
        DataError: a row has no answer, cannot be answered or lacks the column.
        UserError: a server fails.
    """
    scored = edge.answer(rows)
    clouds: list[bool] | list[None] = [None] * len(rows)
    seconds = seconds_of(rows, edge, scored, timed)
    cloud_seconds: list[float | None] = [None] * len(rows)
    if cloud_column is not None:
        clouds = column_rights(rows, cloud_column)
    elif cloud is not None:
        by_cloud = cloud.answer(rows)
        clouds = [each.right for each in by_cloud]
        cloud_seconds = seconds_of(rows, cloud, by_cloud, timed)
    return [
        Answered(row.where, each.answer, each.expected, each.right, each.tokens, by, right, took, cloud_took)
        for row, each, right, took, cloud_took in zip(
            rows, scored, clouds, seconds, cloud_seconds, strict=True
        )
    ]


def seconds_of(rows: Sequence[Row], role: Role, found: Sequence[Scored], timed: int) -> list[float | None]:
    """Answer some rows again, one at a time, and return the seconds of each; `None` for the others.

    They are spread evenly over the rows: a file may have its short or easy ones first.

    Args:
        rows: the rows.
        role: whoever answers.
        found: its answers to all of them; none may be longer now.
        timed: how many are measured; one more is answered before, so that all is warm.
    """
    seconds: list[float | None] = [None] * len(rows)
    if timed == 0:
        return seconds
    alone = role.within(max(1, *(len(each.tokens.logprobs) for each in found)))
    alone.answer(rows[:1], progress=False)
    count = min(timed, len(rows))
    for at in (each * len(rows) // count for each in range(count)):
        began = time.perf_counter()
        alone.answer([rows[at]], progress=False)
        seconds[at] = round(time.perf_counter() - began, 6)
    return seconds


def column_rights(rows: Sequence[Row], column: str) -> list[bool]:
    """Return whether the answers in a column are the expected ones, but for white space at both ends.

    Raises:
        DataError: a row has no answer in it.
    """
    found = []
    for row, expected in zip(rows, expected_answers(rows), strict=True):
        given = row.fields.get(column)
        if not isinstance(given, str):
            raise DataError(f"{row.where}: the column {column!r} must hold the cloud's answer as a string")
        found.append(given.strip() == expected)
    return found


def identity_of(model: str, adapter: str | None, endpoint: str | None = None) -> Answerer:
    """Return what is noted of whoever answers: names, and the hash of the adapter's weights and settings.

    Raises:
        CheckpointError: the adapter's folder cannot be read.
    """
    if adapter is None:
        return Answerer(model, endpoint=endpoint)
    folder = Path(hub_folder.local(adapter, adapter_folder.FILES))
    # A draft vocabulary changes no answer.
    digest = hash_of_files(folder / name for name in (adapter_folder.WEIGHTS, adapter_folder.CONFIG))
    return Answerer(model, adapter, digest, endpoint)
