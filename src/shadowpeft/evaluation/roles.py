"""Who answers for a calibration: a model here with its adapter, or a server; and what the cloud would say."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    def answer(self, rows: Sequence[Row]) -> list[Scored]:
        """Answer rows, with the scores of the answers' tokens."""
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

    def answer(self, rows: Sequence[Row]) -> list[Scored]:
        """Answer rows, with the scores of the answers' tokens."""
        if self.labels is not None:
            return scored_labels(self.model, self.tokenizer, rows, self.labels, batch_size=self.batch_size)
        return scored_answers(
            self.model,
            self.tokenizer,
            rows,
            batch_size=self.batch_size,
            max_length=self.max_length,
            max_new_tokens=self.max_new_tokens,
        )


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

    def answer(self, rows: Sequence[Row]) -> list[Scored]:
        """Answer rows, with the scores of the answers' tokens."""
        return self.endpoint.answers(rows, self.max_new_tokens, self.workers)


def answered_rows(
    rows: Sequence[Row], edge: Role, by: Answerer, cloud: Role | None, cloud_column: str | None
) -> list[Answered]:
    """Let the edge answer rows, and note whether the cloud has them right.

    Args:
        rows: rows that have an answer.
        edge: whoever's answers are to be kept or not.
        by: what is noted of it.
        cloud: whoever answers what is not kept, if it is to be asked.
        cloud_column: in its place, the column of the rows with its answers.

    Raises:
        DataError: a row has no answer, cannot be answered or lacks the column.
        UserError: a server fails.
    """
    scored = edge.answer(rows)
    clouds: list[bool] | list[None] = [None] * len(rows)
    if cloud_column is not None:
        clouds = column_rights(rows, cloud_column)
    elif cloud is not None:
        clouds = [each.right for each in cloud.answer(rows)]
    return [
        Answered(row.where, each.answer, each.expected, each.right, each.tokens, by, cloud_right=right)
        for row, each, right in zip(rows, scored, clouds, strict=True)
    ]


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
