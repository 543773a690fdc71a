"""Rows to token examples for causal language models: what `train` learns, `eval` scores and `generate` starts from.

Shapes in names: B is the batch, T the tokens of its longest example.
"""

import warnings
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from shadowpeft.data.rows import Chat, Pair, Row, Text, parse_form
from shadowpeft.errors import ConfigError, DataError

NO_LOSS = -100


class _Whole(TypedDict):
    input_ids: list[int]
    labels: list[int]


class Example(_Whole, total=False):
    """One training example: token ids, and as many labels, -100 where there is no loss (labels are not shifted).

    Several in one row have positions, too, which begin anew with each: by these transformers keeps them from seeing each other.
    """

    position_ids: list[int]


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
    form = parse_form(row)
    if isinstance(form, Text):
        return _prompt_ids(form.text, tokenizer, row.where)
    if isinstance(form, Pair):
        return _prompt_ids(form.prompt, tokenizer, row.where)
    _check_chat_tokenizer(tokenizer, row.where)
    messages = form.messages[:-1] if form.is_answered else form.messages
    try:
        text = _render(messages, tokenizer, generation_prompt=True)
    except TemplateError as error:
        raise _template_refusal(row.where, error) from error
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _encode_whole(row: Row, tokenizer: PreTrainedTokenizerBase) -> Example:
    form = parse_form(row)
    if isinstance(form, Chat):
        return _encode_chat(form, tokenizer, row.where)
    if isinstance(form, Text):
        _answer_ids(form.text, tokenizer, row.where)  # raises for a text that cannot be encoded
        ids = _with_eos(_prompt_ids(form.text, tokenizer, row.where), tokenizer, row.where)
        return Example(input_ids=ids, labels=list(ids))
    if form.completion is None:
        raise DataError(
            f"{row.where}: training needs a completion beside the prompt, got none; add the field 'completion'"
        )
    prompt = _prompt_ids(form.prompt, tokenizer, row.where)
    answer = _with_eos(_answer_ids(form.completion, tokenizer, row.where), tokenizer, row.where)
    return Example(input_ids=prompt + answer, labels=[NO_LOSS] * len(prompt) + answer)


# Strings


def _prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    tokens = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, added = tokens["input_ids"], tokens["special_tokens_mask"]
    if all(added):
        raise DataError(
            f"{where}: the prompt {text!r} encodes to no token, so there is nothing to start from; use text rows instead"
        )
    while added[
        -1
    ]:  # an end-of-sequence token from the tokenizer would tell the model that the answer is over
        ids, added = ids[:-1], added[:-1]
    return ids


def _answer_ids(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise DataError(
            f"{where}: expected an answer to learn, got {text!r}, which encodes to no token; fill it in or drop the row"
        )
    # A text may spell the unknown token out, which is no failure: GPT-2's is also its end-of-sequence token.
    if tokenizer.unk_token_id in ids and str(tokenizer.unk_token) not in text:
        raise DataError(
            f"{where}: the tokenizer has no token for a part of {text!r} (it gives {tokenizer.unk_token}); change the text"
        )
    return ids


def _with_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            f"{where}: the tokenizer has no end-of-sequence token, so generation would never stop; set tokenizer.eos_token"
        )
    return ids if ids[-1] == eos else [*ids, eos]


# Chats


def _encode_chat(chat: Chat, tokenizer: PreTrainedTokenizerBase, where: str) -> Example:
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


def _learned_spans(
    chat: Chat, text: str, tokenizer: PreTrainedTokenizerBase, where: str
) -> list[tuple[int, int]]:
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


def _turn_span(
    messages: list[dict[str, Any]], text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """Find the last of `messages` in `text`, or None where the template renders it, or what precedes it, differently there."""
    try:
        before = _render(messages[:-1], tokenizer, generation_prompt=True)
        through = _render(messages, tokenizer, generation_prompt=False)
    except (
        TemplateError
    ):  # some templates refuse a chat that ends early, such as one with a system message alone
        return None
    if not (through.startswith(before) and text.startswith(through)):
        return None
    # White space behind the end-of-turn token is never generated, but where white space is all that ends a turn, it is learned.
    trimmed = through.rstrip()
    stop = len(through) if trimmed.endswith(messages[-1]["content"].rstrip()) else len(trimmed)
    return (len(before), stop) if stop > len(before) else None


def _render(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool
) -> str:
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
        raise DataError(
            f"{where}: chats need a fast tokenizer (one with tokenizer.json), got {type(tokenizer).__name__}; convert it"
        )


def _template_refusal(where: str, error: TemplateError) -> DataError:
    return DataError(
        f"{where}: the chat template refuses these messages ({error}); change their roles or order"
    )


# Lengths


def context_length(
    max_positions: int | None, tokenizer: PreTrainedTokenizerBase, requested: int | None
) -> int:
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
    limits = [
        limit
        for limit in (max_positions, tokenizer.model_max_length)
        if limit is not None and limit < VERY_LARGE_INTEGER
    ]
    if not limits:
        raise ConfigError(
            "neither the model nor the tokenizer states how many tokens it can take; set max_length"
        )
    return min(limits)


def _cut(example: Example, max_length: int, where: str) -> Example:
    if max_length < 2:
        raise ConfigError(
            f"max_length must be at least 2 (one token to learn from and one to learn), got {max_length}"
        )
    prompt_length = next(index for index, label in enumerate(example["labels"]) if label != NO_LOSS)
    if prompt_length >= max_length:
        raise DataError(
            f"{where}: the prompt has {prompt_length} tokens, which leaves no room for an answer within max_length={max_length}; "
            "raise max_length, shorten the prompt or drop the row"
        )
    return Example(input_ids=example["input_ids"][:max_length], labels=example["labels"][:max_length])


# Batches


def pack(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Put examples into few rows of at most `max_length` tokens: the longest first, each where the least room is left that it fits.

    The first token of an example is not learned, as it would be predicted from the example before it.

    Args:
        examples: None longer than `max_length`.
        max_length: The most tokens of a row.
    """
    rows: list[list[Example]] = []
    rooms: list[tuple[int, int]] = []  # tokens left and index of each row, the fullest first
    for example in sorted(examples, key=lambda example: len(example["input_ids"]), reverse=True):
        length = len(example["input_ids"])
        fitting = bisect_left(rooms, (length, 0))
        if fitting == len(rooms):
            rooms.append((max_length, len(rows)))
            rows.append([])
        room, index = rooms.pop(fitting)
        rows[index].append(example)
        insort(rooms, (room - length, index))
    return [_join(row) for row in rows]


def _join(row: Sequence[Example]) -> Example:
    return Example(
        input_ids=[token for example in row for token in example["input_ids"]],
        labels=[label for example in row for label in (NO_LOSS, *example["labels"][1:])],
        position_ids=[position for example in row for position in range(len(example["input_ids"]))],
    )


@dataclass(frozen=True)
class Collator:
    """Batch examples, padded on the right to the longest, whatever side the tokenizer pads on for generation.

    Packed examples go without a mask, since transformers looks for documents only where there is none; their padding is one more document.
    Not transformers' `DataCollatorForSeq2Seq`: that pads on the tokenizer's side and needs one with a padding token.

    Attributes:
        pad_token_id: Any id of the vocabulary, as padding is neither attended to nor learned.
        pad_to_multiple_of: Round the padded length up to a multiple of this many tokens.
        mask: Give an attention mask. A causal model that is trained needs none, since no token sees the padding behind it; without one
            attention runs as flash attention where a GPU has it.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1
    mask: bool = True

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Map B examples to int64 tensors, [B, T] each: `input_ids`, `labels`, and `attention_mask` (1 where there is an example) unless
        it is left out, or `position_ids` where they are packed."""
        lengths = [len(example["input_ids"]) for example in examples]
        width = -(-max(lengths) // self.pad_to_multiple_of) * self.pad_to_multiple_of
        padding = [width - length for length in lengths]
        rows: dict[str, list[list[int]]] = {
            "input_ids": [
                example["input_ids"] + [self.pad_token_id] * pad
                for example, pad in zip(examples, padding, strict=True)
            ],
            "labels": [
                example["labels"] + [NO_LOSS] * pad for example, pad in zip(examples, padding, strict=True)
            ],
        }
        if "position_ids" in examples[0]:
            rows["position_ids"] = [
                [*example["position_ids"], *range(pad)]
                for example, pad in zip(examples, padding, strict=True)
            ]
        elif self.mask:
            rows["attention_mask"] = [
                [1] * length + [0] * pad for length, pad in zip(lengths, padding, strict=True)
            ]
        return {name: torch.tensor(values) for name, values in rows.items()}
