"""Rows of text to token examples for causal language models: what `train` learns, `eval` scores and `generate` starts from.

Shapes in names: B is the batch, T the tokens of its longest example.
"""

import gzip
import json
import random
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from shadowpeft.errors import ConfigError, DataError

NO_LOSS = -100
ROW_FORMS = '{"messages": [{"role": ..., "content": ...}, ...]}, {"prompt": ..., "completion": ...} or {"text": ...}'


@dataclass(frozen=True)
class Row:
    """One row of a data set as it was read.

    Attributes:
        fields: The row itself.
        where: File and line, or data set and index, for messages.
    """

    fields: dict[str, Any]
    where: str


class Example(TypedDict):
    """One training example: token ids, and as many labels, -100 where there is no loss (labels are not shifted)."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class _Chat:
    messages: list[dict[str, Any]]
    learn_from: int  # assistant turns before this index are context, not answers

    @property
    def is_answered(self) -> bool:
        return len(self.messages) > self.learn_from and self.messages[-1]["role"] == "assistant"


@dataclass(frozen=True)
class _Pair:
    prompt: str
    completion: str | None


@dataclass(frozen=True)
class _Text:
    text: str


# Reading


def read_rows(source: str, split: str = "train") -> list[Row]:
    """Read all rows of a file or data set.

    Args:
        source: A `.jsonl` or `.jsonl.gz` file, a data set folder or the id of a data set on the hub.
        split: The split of a folder or hub data set, such as "test" or "train[:100]". A file is one split and ignores it.

    Raises:
        DataError: The source is missing, damaged or empty, or a line is not a JSON object (the message names file and line).
    """
    if source.endswith((".jsonl", ".jsonl.gz")):
        rows = _read_jsonl(source)
    elif Path(source).is_file():
        raise DataError(f"{source}: expected a .jsonl or .jsonl.gz file, a data set folder or a hub id; write one JSON object per line")
    else:
        rows = _read_dataset(source, split)
    if not rows:
        raise DataError(f"{source}: expected at least one row, got none; rows look like {ROW_FORMS}")
    return rows


def _read_jsonl(path: str) -> list[Row]:
    rows, number = [], 0
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}:{number}"
                    rows.append(Row(_parse_line(line, where), where))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a .jsonl or .jsonl.gz file, a data set folder or a hub id") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a cut and a damaged .gz file
        raise DataError(f"{path}: cannot be read beyond line {number} ({error}); check or rewrite the file") from error
    return rows


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{where}: expected one JSON object in UTF-8, got a line that does not parse ({error})") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: expected a JSON object, got {_kind(fields)}; rows look like {ROW_FORMS}")
    return fields


def _read_dataset(source: str, split: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source}: reading it needs the datasets library; pip install 'shadowpeft[train]'") from error
    try:
        dataset = datasets.load_dataset(source, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: split {split!r} of this data set folder or hub id cannot be loaded: {error}") from error
    return [Row(fields, f"{source}[{split!r}][{index}]") for index, fields in enumerate(dataset)]


def split_rows(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Part rows into (train, evaluation), the same way for the same rows, fraction and seed; both keep the order of `rows`.

    Args:
        rows: At least two rows.
        fraction: The share for evaluation, between 0 and 1; each side gets at least one row.
        seed: Decides which rows go where.

    Raises:
        DataError: There are fewer than two rows, or `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise DataError(f"the evaluation fraction must lie between 0 and 1, got {fraction}; 0.1 holds out a tenth of the rows")
    if len(rows) < 2:
        raise DataError(f"a split into train and evaluation rows needs at least 2 rows, got {len(rows)}; add rows or do not split")
    count = min(max(round(len(rows) * fraction), 1), len(rows) - 1)
    held_out = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in held_out]
    return train, [rows[index] for index in sorted(held_out)]


# Rows to examples


def encode_all(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Encode every row as `encode` does, and warn once with the number of rows that were cut.

    Args:
        rows: At least one row.
        tokenizer: The tokenizer of the base model.
        max_length: The most tokens an example may have.

    Raises:
        DataError: There are no rows, or one of them cannot be encoded.
        ConfigError: `max_length` is below 2.
    """
    if not rows:
        raise DataError("expected at least one row to encode, got none; check the data file and the split")
    encoded = [(row, _encode_whole(row, tokenizer)) for row in rows]
    examples = [_cut(example, max_length, row.where) for row, example in encoded]
    too_long = [row.where for row, example in encoded if len(example["input_ids"]) > max_length]
    if too_long:
        warnings.warn(
            f"{len(too_long)} of {len(rows)} rows are longer than max_length={max_length} tokens and lost their end "
            f"(the first is {too_long[0]}); raise max_length or shorten them",
            stacklevel=2,
        )
    return examples


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    """Map a row to the token ids to train on and their labels; what exceeds `max_length` is cut off at the end.

    The loss is on the answer alone, including the token that ends it. Prompt and completion strings are tokenised apart and
    joined, so training sees the tokens generation will see. A chat has the ids of the tokenizer's chat template, with
    loss on each assistant turn (of a conversational completion: each of its turns) that the template renders the same
    here as when it was the last; a template that rewrites earlier turns, as Qwen3's does, leaves the last turn alone.
    A plain text is learned whole. Strings end with the tokenizer's end-of-sequence token.

    Args:
        row: A row with `messages`, with `prompt` and `completion`, or with `text`, sought in this order.
        tokenizer: The tokenizer of the base model; a fast one for chats.
        max_length: The most tokens the example may have.

    Raises:
        DataError: The row has none of the three forms, lacks its answer, cannot be encoded, or its prompt fills `max_length`.
        ConfigError: `max_length` is below 2.
    """
    return _cut(_encode_whole(row, tokenizer), max_length, row.where)


def encode_prompt(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Map a row to the token ids that generation starts from: all before the last answer, which may also be missing.

    A chat that ends in an assistant turn is taken without it and with the template's generation prompt; a plain text is a prompt.

    Raises:
        DataError: The row has none of the three forms or cannot be encoded.
    """
    form = _parse_form(row)
    if isinstance(form, _Text):
        return _prompt_ids(form.text, tokenizer, row.where)
    if isinstance(form, _Pair):
        return _prompt_ids(form.prompt, tokenizer, row.where)
    _check_chat_tokenizer(tokenizer, row.where)
    messages = form.messages[:-1] if form.is_answered else form.messages
    try:
        text = _render(messages, tokenizer, generation_prompt=True)
    except TemplateError as error:
        raise _template_refusal(row.where, error) from error
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def reference_answer(row: Row) -> str | None:
    """Map a row to the answer expected of generation: the completion or last assistant content, None where there is none.

    Raises:
        DataError: The row has none of the three forms.
    """
    form = _parse_form(row)
    if isinstance(form, _Pair):
        return form.completion
    if isinstance(form, _Chat) and form.is_answered:
        return form.messages[-1]["content"]
    return None


def _encode_whole(row: Row, tokenizer: PreTrainedTokenizerBase) -> Example:
    form = _parse_form(row)
    if isinstance(form, _Chat):
        return _encode_chat(form, tokenizer, row.where)
    if isinstance(form, _Text):
        _answer_ids(form.text, tokenizer, row.where)  # raises for a text that cannot be encoded
        ids = _with_eos(_prompt_ids(form.text, tokenizer, row.where), tokenizer, row.where)
        return Example(input_ids=ids, labels=list(ids))
    if form.completion is None:
        raise DataError(f"{row.where}: training needs a completion beside the prompt, got none; add the field 'completion'")
    prompt = _prompt_ids(form.prompt, tokenizer, row.where)
    answer = _with_eos(_answer_ids(form.completion, tokenizer, row.where), tokenizer, row.where)
    return Example(input_ids=prompt + answer, labels=[NO_LOSS] * len(prompt) + answer)


def _cut(example: Example, max_length: int, where: str) -> Example:
    if max_length < 2:
        raise ConfigError(f"max_length must be at least 2 (one token to learn from and one to learn), got {max_length}")
    prompt_length = next(index for index, label in enumerate(example["labels"]) if label != NO_LOSS)
    if prompt_length >= max_length:
        raise DataError(
            f"{where}: the prompt has {prompt_length} tokens, which leaves no room for an answer within max_length={max_length}; "
            "raise max_length, shorten the prompt or drop the row"
        )
    return Example(input_ids=example["input_ids"][:max_length], labels=example["labels"][:max_length])


# Strings


def _prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    tokens = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, added = tokens["input_ids"], tokens["special_tokens_mask"]
    if all(added):
        raise DataError(f"{where}: the prompt {text!r} encodes to no token, so there is nothing to start from; use text rows instead")
    while added[-1]:  # an end-of-sequence token from the tokenizer would tell the model that the answer is over
        ids, added = ids[:-1], added[:-1]
    return ids


def _answer_ids(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise DataError(f"{where}: expected an answer to learn, got {text!r}, which encodes to no token; fill it in or drop the row")
    # A text may spell the unknown token out, which is no failure: GPT-2's is also its end-of-sequence token.
    if tokenizer.unk_token_id in ids and str(tokenizer.unk_token) not in text:
        raise DataError(f"{where}: the tokenizer has no token for a part of {text!r} (it gives {tokenizer.unk_token}); change the text")
    return ids


def _with_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(f"{where}: the tokenizer has no end-of-sequence token, so generation would never stop; set tokenizer.eos_token")
    return ids if ids[-1] == eos else [*ids, eos]


# Chats


def _encode_chat(chat: _Chat, tokenizer: PreTrainedTokenizerBase, where: str) -> Example:
    _check_chat_tokenizer(tokenizer, where)
    if not chat.is_answered:
        role = chat.messages[-1]["role"]
        raise DataError(
            f"{where}: training needs an assistant's answer as the last message, got none (the last is in role {role!r}); add it "
            "to 'messages' or 'completion'"
        )
    try:
        text = _render(chat.messages, tokenizer, generation_prompt=False)
    except TemplateError as error:
        raise _template_refusal(where, error) from error
    spans = _learned_spans(chat, text, tokenizer, where)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    labels = []
    for token, (start, stop) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
        # Overlap, not inclusion: a template's last space may be one token with the first word of the answer.
        learned = any(stop > span_start and start < span_stop for span_start, span_stop in spans)
        labels.append(token if learned else NO_LOSS)
    return Example(input_ids=tokens["input_ids"], labels=labels)


def _learned_spans(chat: _Chat, text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[tuple[int, int]]:
    """Find the characters of `text`, the rendered chat, that are answers: (first, one past the last) of each."""
    spans, last = [], len(chat.messages) - 1
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant" or index < chat.learn_from:
            continue
        span = _turn_span(chat.messages[: index + 1], text, tokenizer)
        if span is not None:
            _answer_ids(message["content"], tokenizer, where)
            spans.append(span)
        elif index == last:
            raise DataError(
                f"{where}: the chat template renders the messages before the last answer, with its generation prompt, other than in "
                "the whole chat, so generation would not start where training did; use prompt and completion strings or change the template"
            )
    return spans


def _turn_span(messages: list[dict[str, Any]], text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """Find the last of `messages` in `text`, or None where the template renders it, or what precedes it, differently there."""
    try:
        before = _render(messages[:-1], tokenizer, generation_prompt=True)
        through = _render(messages, tokenizer, generation_prompt=False)
    except TemplateError:  # some templates refuse a chat that ends early, such as one with a system message alone
        return None
    if not (through.startswith(before) and text.startswith(through)):
        return None
    # White space behind the end-of-turn token is never generated, but where white space is all that ends a turn, it is learned.
    trimmed = through.rstrip()
    stop = len(through) if trimmed.endswith(messages[-1]["content"].rstrip()) else len(trimmed)
    return (len(before), stop) if stop > len(before) else None


def _render(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    assert isinstance(text, str)
    return text


def _check_chat_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    if tokenizer.chat_template is None:
        raise DataError(
            f"{where}: the row is a chat but the tokenizer has no chat template; use prompt and completion strings, "
            "a chat model's tokenizer, or set tokenizer.chat_template"
        )
    if not tokenizer.is_fast:
        raise DataError(f"{where}: chats need a fast tokenizer (one with tokenizer.json), got {type(tokenizer).__name__}; convert it")


def _template_refusal(where: str, error: TemplateError) -> DataError:
    return DataError(f"{where}: the chat template refuses these messages ({error}); change their roles or order")


# Rows to forms


def _parse_form(row: Row) -> _Chat | _Pair | _Text:
    # A null counts as absent: `datasets` fills the columns that a row lacks with nulls.
    fields, where = {name: value for name, value in row.fields.items() if value is not None}, row.where
    if "messages" in fields:
        return _chat(_check_messages(fields["messages"], "messages", where), 1, where)
    if "prompt" in fields:
        return _parse_prompt(fields["prompt"], fields.get("completion"), where)
    if "text" in fields:
        return _Text(_check_string(fields["text"], "text", where))
    got = ", ".join(f"{name} ({_kind(value)})" for name, value in row.fields.items()) or "none"
    raise DataError(f"{where}: expected a row like {ROW_FORMS}, got the fields: {got}; rename or convert them")


def _parse_prompt(prompt: Any, completion: Any, where: str) -> _Chat | _Pair:
    if completion is not None and isinstance(prompt, list) != isinstance(completion, list):
        raise DataError(
            f"{where}: 'prompt' and 'completion' must both be strings or both be lists of messages, "
            f"got {_kind(prompt)} and {_kind(completion)}"
        )
    if not isinstance(prompt, list):
        return _Pair(
            _check_string(prompt, "prompt", where),
            None if completion is None else _check_string(completion, "completion", where),
        )
    messages = _check_messages(prompt, "prompt", where)
    answers = [] if completion is None else _check_messages(completion, "completion", where)
    return _chat(messages + answers, len(messages), where)


def _chat(messages: list[dict[str, Any]], learn_from: int, where: str) -> _Chat:
    if len(messages) == 1 and messages[0]["role"] == "assistant":
        raise DataError(f"{where}: expected a message before the assistant's, got the assistant's alone; add the user's")
    return _Chat(messages, learn_from)


def _check_messages(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else _kind(value)
        raise DataError(f"{where}: '{name}' must be a list of at least one message, got {got}")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise DataError(f'{where}: {name}[{index}] must be {{"role": ..., "content": ...}}, got {_kind(message)}')
        for key in ("role", "content"):
            _check_string(message.get(key), f"{name}[{index}].{key}", where)
    return value


def _check_string(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: '{name}' must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: '{name}' holds half a character ({error}), which no tokenizer can encode; repair the text") from error
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


# Batches


@dataclass(frozen=True)
class Collator:
    """Batch examples, padded on the right to the longest, whatever side the tokenizer pads on for generation.

    Not transformers' `DataCollatorForSeq2Seq`: that pads on the tokenizer's side and needs one with a padding token.

    Attributes:
        pad_token_id: Any id of the vocabulary, as padding is neither attended to nor learned.
        pad_to_multiple_of: Round the padded length up to a multiple of this many tokens.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Map B examples to `input_ids`, `attention_mask` (1 where there is an example) and `labels`, int64 [B, T] each."""
        lengths = [len(example["input_ids"]) for example in examples]
        width = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padding = [width - length for length in lengths]
        ids_BT = [example["input_ids"] + [self.pad_token_id] * pad for example, pad in zip(examples, padding, strict=True)]
        mask_BT = [[1] * length + [0] * pad for length, pad in zip(lengths, padding, strict=True)]
        labels_BT = [example["labels"] + [NO_LOSS] * pad for example, pad in zip(examples, padding, strict=True)]
        return {"input_ids": torch.tensor(ids_BT), "attention_mask": torch.tensor(mask_BT), "labels": torch.tensor(labels_BT)}


def context_length(max_positions: int | None, tokenizer: PreTrainedTokenizerBase, requested: int | None) -> int:
    """Pick the `max_length` of examples, in tokens: the one requested, else the lesser of the model's and the tokenizer's limit.

    Args:
        max_positions: `config.max_position_embeddings` of the model, None where it has none.
        tokenizer: Its `model_max_length` is only a default: a request may exceed it.
        requested: What the user asked for, None to be given the limit.

    Raises:
        ConfigError: The request is below 2 or beyond the model, or there is neither a request nor a limit.
    """
    if requested is not None:
        if requested < 2 or (max_positions is not None and requested > max_positions):
            most = "" if max_positions is None else f" and at most the model's {max_positions}"
            raise ConfigError(f"max_length must be at least 2{most} tokens, got {requested}")
        return requested
    # transformers writes VERY_LARGE_INTEGER where a tokenizer states no limit.
    limits = [limit for limit in (max_positions, tokenizer.model_max_length) if limit is not None and limit < VERY_LARGE_INTEGER]
    if not limits:
        raise ConfigError("neither the model nor the tokenizer states how many tokens it can take; set max_length")
    return min(limits)
