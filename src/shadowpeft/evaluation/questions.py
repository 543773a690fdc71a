"""Rows as questions to a model that generates: prompts, what answers begin with, and when they are right."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from shadowpeft.data.encode import Opening, Reference, encode_opening, encode_reference
from shadowpeft.data.rows import Row
from shadowpeft.evaluation.answers import encode_prompts


class Questions(NamedTuple):
    """Rows to answer, and what is expected; one entry a row.

    Attributes:
        prompts: token ids.
        openings: what the chat template opens the answers with.
        references: the answers expected.
        max_new_tokens: tokens that an answer may have, with its opening.
    """

    prompts: list[list[int]]
    openings: list[Opening]
    references: list[Reference]
    max_new_tokens: int

    def contents(self, answers: Sequence[str]) -> list[str]:
        """Return decoded answers without their openings and the white space at both ends."""
        return [
            opening.content_of(answer).strip() for answer, opening in zip(answers, self.openings, strict=True)
        ]

    def are_right(self, answers: Sequence[str]) -> list[bool]:
        """Return whether each answer is what was trained, or its content alone."""
        found = zip(self.contents(answers), self.openings, self.references, strict=True)
        return [given in _accepted(opening, reference) for given, opening, reference in found]


def _accepted(opening: Opening, reference: Reference) -> set[str]:
    accepted = {opening.content_of(reference.text).strip()}
    if reference.content:
        accepted.add(reference.content.strip())
    return accepted


def questions_of(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, limit: int, max_new_tokens: int | None
) -> Questions:
    """Make questions of rows that have an answer.

    Args:
        rows: the rows.
        tokenizer: the model's.
        limit: tokens that prompt and answer may have together.
        max_new_tokens: tokens an answer may have, beside what the chat template opens it with; by default one
            more than the longest reference answer, or what the prompt leaves.

    Raises:
        DataError: a row cannot be encoded, or its prompt leaves no room for an answer.
    """
    references = [found for row in rows if (found := encode_reference(row, tokenizer)) is not None]
    openings = [encode_opening(row, tokenizer) for row in rows]
    opening = max(opening.length for opening in openings)
    room = 1 if max_new_tokens is None else max_new_tokens + opening
    prompts = encode_prompts(rows, tokenizer, limit, max_new_tokens=room)
    if max_new_tokens is None:
        room = 1 + max(reference.length for reference in references)
    return Questions(prompts, openings, references, room)
