"""Rows of text: reading, splitting, and their three forms (a chat, a prompt with its completion, a text)."""

import gzip
import json
import os
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shadowpeft.errors import DataError

ROW_FORMS = (
    '{"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or {"text": ...}'
)


# Columns beside a chat that its template reads: two lists of objects and the template's own settings.
_LISTS, _SETTINGS = ("tools", "documents"), "chat_template_kwargs"
# What `apply_chat_template` is told by us.
_OURS = ("add_generation_prompt", "continue_final_message", "tokenize", "chat_template", "conversation")


@dataclass(frozen=True)
class Row:
    """One row of a data set as it was read.

    Attributes:
        fields: The row itself.
        where: File and line, or data set and index, for messages.
    """

    fields: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Chat:
    """A row of messages, or of a prompt and a completion that are both lists of messages.

    Attributes:
        messages: At least one, each with a string `role` and a string `content`, which may be missing beside
            `tool_calls`; never the assistant's alone.
        learn_from: Assistant turns before this index are context, not answers.
        options: What else the chat template reads: `tools`, `documents` and the template's own settings.
    """

    messages: list[dict[str, Any]]
    learn_from: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_answered(self) -> bool:
        """True if the last message is an answer."""
        return len(self.messages) > self.learn_from and self.messages[-1]["role"] == "assistant"


@dataclass(frozen=True)
class Pair:
    """A row of a prompt and a completion that are strings; the completion may be missing."""

    prompt: str
    completion: str | None


@dataclass(frozen=True)
class Text:
    """A row of plain text."""

    text: str


# Reading


def read_rows(source: str | os.PathLike[str], split: str = "train") -> list[Row]:
    """Read all rows of a file or data set.

    Args:
        source: A `.jsonl` or `.jsonl.gz` file, a data set folder or the id of a data set on the hub.
        split: The split of a folder or hub data set, such as "test" or "train[:100]"; ignored for a file.

    Raises:
        DataError: The source is missing, damaged or empty, or a line is not a JSON object. The message names
            file and line.
    """
    source = os.fspath(source)
    if source.endswith((".jsonl", ".jsonl.gz")):
        rows = _read_jsonl(source)
    elif Path(source).is_file():
        raise DataError(
            f"{source}: expected a .jsonl or .jsonl.gz file, a data set folder or a hub id; write one JSON "
            "object per line"
        )
    else:
        rows = _read_dataset(source, split)
    if not rows:
        raise DataError(f"{source}: expected at least one row, got none; rows look like {ROW_FORMS}")
    return rows


def _read_jsonl(path: str) -> list[Row]:
    rows, number = [], 0
    read = gzip.open if path.endswith(".gz") else open
    try:
        with read(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    rows.append(Row(_parse_line(line, where), where))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; give a .jsonl or .jsonl.gz file, a data set folder or a hub id"
        ) from None
    # The last two come from a .gz file that was cut short or is damaged.
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read beyond line {number} ({error}); check or rewrite the file"
        ) from error
    return rows


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(
            f"{where}: expected one JSON object in UTF-8, got a line that does not parse ({error})"
        ) from error
    except RecursionError:
        raise DataError(
            f"{where}: expected one JSON object, got one nested too deep to be read; flatten it or drop the "
            "row"
        ) from None
    if not isinstance(fields, dict):
        raise DataError(f"{where}: expected a JSON object, got {_kind(fields)}; rows look like {ROW_FORMS}")
    return fields


def _read_dataset(source: str, split: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{source}: reading it needs the datasets library; pip install 'shadowpeft[train]'"
        ) from error
    try:
        dataset = datasets.load_dataset(source, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{source}: split {split!r} of this data set folder or hub id cannot be loaded: {error}"
        ) from error
    return [Row(fields, f"{source}[{split!r}][{index}]") for index, fields in enumerate(dataset)]


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Split rows into those for training and those for evaluation; both keep the order of `rows`.

    The same rows, fraction and seed always give the same split.

    Args:
        rows: At least two rows.
        fraction: The share for evaluation, between 0 and 1; each side gets at least one row.
        seed: Seed of the choice.

    Raises:
        DataError: There are fewer than two rows, or `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(
            f"the evaluation fraction must lie between 0 and 1, got {fraction}; 0.1 holds out a tenth of the "
            "rows"
        )
    if len(rows) < 2:
        raise DataError(
            f"a split into train and evaluation rows needs at least 2 rows, got {len(rows)}; add rows, or "
            "set the evaluation fraction to 0 to train on everything"
        )
    count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    held_out = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in held_out]
    return train, [rows[index] for index in sorted(held_out)]


# Forms


def parse_form(row: Row) -> Chat | Pair | Text:
    """Recognise and check the form of a row: `messages`, `prompt` or `text`, sought in this order.

    Raises:
        DataError: The row has none of the three forms.
    """
    fields, where = _filled(row), row.where
    form = _form_name(fields)
    if form == "messages":
        messages = _check_messages(fields["messages"], "messages", where)
        return _chat(messages, 1, _options(fields, where), where)
    if form == "prompt":
        return _parse_prompt(fields, where)
    if form == "text":
        return Text(_check_string(fields["text"], "text", where))
    got = ", ".join(f"{name} ({_kind(value)})" for name, value in row.fields.items()) or "none"
    raise DataError(
        f"{where}: expected a row like {ROW_FORMS}, got the fields: {got}; rename or convert them"
    )


def reference_answer(row: Row) -> str | None:
    """Return the answer expected of generation, `None` if there is none: the completion or the last message.

    An answer that only calls tools is empty: what of it is generated depends on the template.

    Raises:
        DataError: The row has none of the three forms.
    """
    form = parse_form(row)
    if isinstance(form, Pair):
        return form.completion
    if isinstance(form, Chat) and form.is_answered:
        return form.messages[-1].get("content") or ""
    return None


def unused_columns(rows: Iterable[Row]) -> list[str]:
    """List the columns that hold something and that the forms of their rows do not read."""
    found: dict[str, None] = {}
    for row in rows:
        fields = _filled(row)
        form = _form_name(fields)
        used = {form}
        if form == "prompt":
            used.add("completion")
        if form == "messages" or isinstance(fields.get("prompt"), list):
            used.update((*_LISTS, _SETTINGS))
        found |= dict.fromkeys(name for name in fields if name not in used)
    return list(found)


def _filled(row: Row) -> dict[str, Any]:
    # A null counts as absent: `datasets` fills the columns that a row lacks with nulls.
    return {name: value for name, value in row.fields.items() if value is not None}


def _form_name(fields: dict[str, Any]) -> str | None:
    return next((name for name in ("messages", "prompt", "text") if name in fields), None)


def _parse_prompt(fields: dict[str, Any], where: str) -> Chat | Pair:
    prompt, completion = fields["prompt"], fields.get("completion")
    if completion is not None and isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"{where}: 'prompt' and 'completion' must both be strings or both be lists of messages, "
            f"got {_kind(prompt)} and {_kind(completion)}"
        )
    if not isinstance(prompt, list):
        _check_string(prompt, "prompt", where)
        if completion is not None:
            _check_string(completion, "completion", where)
        return Pair(prompt, completion)
    messages, answers = _check_messages(prompt, "prompt", where), []
    if completion is not None:
        answers = _check_messages(completion, "completion", where)
    return _chat(messages + answers, len(messages), _options(fields, where), where)


def _chat(messages: list[dict[str, Any]], learn_from: int, options: dict[str, Any], where: str) -> Chat:
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        raise DataError(
            f"{where}: expected a message before the assistant's, got the assistant's alone; add the user's"
        )
    return Chat(messages, learn_from, options)


def _options(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Return what a row's chat template reads beside the messages, as TRL's users write it."""
    settings = _object(fields.get(_SETTINGS, {}), dict, _SETTINGS, where)
    taken = sorted(settings.keys() & {*_LISTS, *_OURS})
    if taken:
        raise DataError(
            f"{where}: {_SETTINGS} must hold the chat template's own settings, got {taken[0]!r}; give tools "
            "and documents as columns, and leave out what rendering is told by us"
        )
    lists = {name: _object(fields[name], list, name, where) for name in _LISTS if name in fields}
    # An empty list means none, as in data where only some rows have tools.
    return settings | {name: value for name, value in lists.items() if value}


def _object(value: Any, kind: type, name: str, where: str) -> Any:
    """Return a column that holds a list of objects or an object, which may be written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: '{name}' is text that is not JSON ({error}); repair it") from error
    entries = value if kind is list else [value]
    if not isinstance(value, kind) or not all(isinstance(entry, dict) for entry in entries):
        wanted = "a list of objects" if kind is list else "an object"
        raise DataError(f"{where}: '{name}' must be {wanted} or that as JSON, got {_kind(value)}")
    return value


def _check_messages(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else _kind(value)
        raise DataError(f"{where}: '{name}' must be a list of at least one message, got {got}")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise DataError(
                f'{where}: {name}[{index}] must be {{"role": ..., "content": ...}}, got {_kind(message)}'
            )
        _check_string(message.get("role"), f"{name}[{index}].role", where)
        # A message that calls tools says nothing.
        if message.get("content") is not None or not message.get("tool_calls"):
            _check_string(message.get("content"), f"{name}[{index}].content", where)
    return value


def _check_string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: '{name}' holds half a character ({error}), which no tokenizer can encode; repair the "
            "text"
        ) from error
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
