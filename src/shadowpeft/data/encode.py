"""Rows encoded as token examples for causal language models, for training, for losses and to generate from.

Shapes in names: B is the batch, T the tokens of its longest example.
"""

import itertools
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from shadowpeft.data import chats
from shadowpeft.data.rows import Chat, Pair, Row, Text, parse_form, unused_columns
from shadowpeft.errors import ConfigError, DataError

# The label of a token without loss, by transformers' convention.
NO_LOSS = -100


class _Whole(TypedDict):
    input_ids: list[int]
    labels: list[int]


class Example(_Whole, total=False):
    """One example: token ids and as many labels, -100 where there is no loss. Labels are not shifted.

    Several examples packed into one have positions, too, which begin at 0 with each: by these transformers
    keeps the examples from attending to each other.
    """

    position_ids: list[int]


# Rows to examples


def encode_all(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Encode every row as `encode` does; warn once of rows that were cut and of columns that are not used.

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
    unused = unused_columns(rows)
    if unused:
        warnings.warn(
            f"the rows have columns that are not used: {', '.join(map(repr, unused))}; drop them, or rename "
            "them to what a row may hold",
            stacklevel=2,
        )
    examples = [_cut(example, max_length, row.where) for row, example in encoded]
    too_long = [row.where for row, example in encoded if len(example["input_ids"]) > max_length]
    if too_long:
        warnings.warn(
            f"{len(too_long)} of {len(rows)} rows are longer than max_length={max_length} tokens and lost "
            f"their end (the first is {too_long[0]}); raise max_length or shorten them",
            stacklevel=2,
        )
    return examples


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Example:
    """Map a row to token ids and labels; the tokens beyond `max_length` are cut off at the end.

    The loss is on the answer alone, including the token that ends it:

    - Prompt and completion strings are tokenised separately and joined, so that training sees the tokens that
      generation will see. The completion ends with the tokenizer's end-of-sequence token.
    - A chat has the ids of the tokenizer's chat template. The loss is on each assistant turn (of a
      conversational completion: on each of its turns) that the template renders as it did when that turn was
      the last. A template that rewrites earlier turns, such as Qwen3's, leaves only the last one.
    - A plain text has a loss on every token, and ends with the end-of-sequence token.

    Args:
        row: A row with `messages`, with `prompt` and `completion`, or with `text`, sought in this order.
        tokenizer: The tokenizer of the base model; a fast one for chats.
        max_length: The most tokens that the example may have.

    Raises:
        DataError: The row has none of the three forms, has no answer, cannot be encoded, or its prompt fills
            `max_length`.
        ConfigError: `max_length` is below 2.
    """
    return _cut(_encode_whole(row, tokenizer), max_length, row.where)


def encode_prompt(row: Row, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Map a row to the token ids that generation starts from: all before the last answer, if there is one.

    A chat loses a last assistant turn and gets the template's generation prompt. A plain text is itself the
    prompt.

    Raises:
        DataError: The row has none of the three forms or cannot be encoded.
    """
    form = parse_form(row)
    if isinstance(form, Text):
        return _prompt_ids(form.text, tokenizer, row.where)
    if isinstance(form, Pair):
        return _prompt_ids(form.prompt, tokenizer, row.where)
    chats.refuse_tokenizer(tokenizer, row.where)
    return _ids(chats.render(_asked(form), tokenizer, row.where, generation_prompt=True), tokenizer)


class Opening(NamedTuple):
    """What a chat template puts before the content of an answer, and a model trained on it generates.

    Most templates put nothing there; some of models that think, an empty block of thoughts.

    Attributes:
        text: as it is decoded.
        length: how many tokens it has.
    """

    text: str = ""
    length: int = 0

    def content_of(self, answer: str) -> str:
        """Return a decoded answer without its opening."""
        opening = self.text.strip()
        if opening and answer.lstrip().startswith(opening):
            return answer.lstrip().removeprefix(opening).lstrip()
        return answer


def encode_opening(row: Row, tokenizer: PreTrainedTokenizerBase) -> Opening:
    """Return what opens an answer to a row.

    Raises:
        DataError: The row has none of the three forms or cannot be encoded.
    """
    form = parse_form(row)
    if not isinstance(form, Chat):
        return Opening()
    ids = _ids(chats.opening(_asked(form), tokenizer, row.where), tokenizer)
    return Opening(str(tokenizer.decode(ids, skip_special_tokens=True)), len(ids))


def _asked(chat: Chat) -> Chat:
    """Return a chat without its last answer."""
    return replace(chat, messages=chat.messages[:-1]) if chat.is_answered else chat


class Reference(NamedTuple):
    """The answer expected of generation.

    Attributes:
        text: the answer as it is learned and decoded.
        content: the content of the answer as the row has it; empty if it only calls tools.
        length: how many tokens generation needs for it, its end left out.
    """

    text: str
    content: str
    length: int


def encode_reference(row: Row, tokenizer: PreTrainedTokenizerBase) -> Reference | None:
    """Return the answer expected of generation, `None` if the row has none.

    Raises:
        DataError: The row has none of the three forms or cannot be encoded.
    """
    form = parse_form(row)
    if isinstance(form, Pair) and form.completion is not None:
        return Reference(form.completion, form.completion, len(_ids(form.completion, tokenizer)))
    if not isinstance(form, Chat) or not form.is_answered:
        return None
    chats.refuse_tokenizer(tokenizer, row.where)
    text = chats.render(form, tokenizer, row.where)
    last = replace(form, learn_from=len(form.messages) - 1)
    ((content, (start, stop)),) = chats.answers_in(text, last, tokenizer, row.where)
    ids = _ids(text[start:stop], tokenizer)
    return Reference(str(tokenizer.decode(ids, skip_special_tokens=True)), content or "", len(ids))


def _encode_whole(row: Row, tokenizer: PreTrainedTokenizerBase) -> Example:
    form = parse_form(row)
    if isinstance(form, Chat):
        return _encode_chat(form, tokenizer, row.where)
    if isinstance(form, Text):
        _answer_ids(form.text, tokenizer, row.where)  # raises for a text that cannot be encoded
        ids = _with_end(_prompt_ids(form.text, tokenizer, row.where), tokenizer, row.where)
        return Example(input_ids=ids, labels=list(ids))
    if form.completion is None:
        raise DataError(
            f"{row.where}: training needs a completion beside the prompt, got none; add the field "
            "'completion'"
        )
    prompt = _prompt_ids(form.prompt, tokenizer, row.where)
    completion = form.completion
    # White space behind an end that is written out, as in a rendered chat, is never generated.
    if tokenizer.eos_token and completion.rstrip().endswith(str(tokenizer.eos_token)):
        completion = completion.rstrip()
    answer = _with_end(_answer_ids(completion, tokenizer, row.where), tokenizer, row.where)
    return Example(input_ids=prompt + answer, labels=[NO_LOSS] * len(prompt) + answer)


# Strings


def _prompt_ids(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    tokens = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, added = tokens["input_ids"], tokens["special_tokens_mask"]
    if all(added):
        raise DataError(
            f"{where}: the prompt {text!r} encodes to no token, so there is nothing to start from; use text "
            "rows instead"
        )
    # An end-of-sequence token that the tokenizer adds would tell the model that the answer is over.
    while added[-1]:
        ids, added = ids[:-1], added[:-1]
    # A text that a chat template has rendered begins with what the tokenizer adds.
    own = _ids(text, tokenizer)
    before = ids[: len(ids) - len(own)]
    if before and ids[len(before) :] == own and own[: len(before)] == before:
        return own
    return ids


def _answer_ids(text: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    ids = _ids(text, tokenizer)
    if not ids:
        raise DataError(
            f"{where}: expected an answer to learn, got {text!r}, which encodes to no token; fill it in or "
            "drop the row"
        )
    # A text may contain the unknown token literally, which is no failure: GPT-2's is also its end-of-sequence
    # token.
    if tokenizer.unk_token_id in ids and str(tokenizer.unk_token) not in text:
        raise DataError(
            f"{where}: the tokenizer has no token for a part of {text!r} (it gives {tokenizer.unk_token}); "
            "change the text"
        )
    return ids


def _with_end(ids: list[int], tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """Return ids that end with the end-of-sequence token, or with it and white space as rendered chats do."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            f"{where}: the tokenizer has no end-of-sequence token, so generation would never stop; set "
            "tokenizer.eos_token"
        )
    last = len(ids) - 1
    while last > 0 and ids[last] != eos and str(tokenizer.decode([ids[last]])).isspace():
        last -= 1
    return ids if ids[last] == eos else [*ids, eos]


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


# Chats


def _encode_chat(chat: Chat, tokenizer: PreTrainedTokenizerBase, where: str) -> Example:
    chats.refuse_tokenizer(tokenizer, where)
    if not chat.is_answered:
        role = chat.messages[-1]["role"]
        raise DataError(
            f"{where}: training needs an assistant's answer as the last message, got none (the last is in "
            f"role {role!r}); add it to 'messages' or 'completion'"
        )
    text = chats.render(chat, tokenizer, where)
    spans = []
    for content, span in chats.answers_in(text, chat, tokenizer, where=where):
        if content is not None:
            _answer_ids(content, tokenizer, where)  # raises for an answer that cannot be encoded
        spans.append(span)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts = [start for start, _ in sorted(spans)]
    reach = list(itertools.accumulate((stop for _, stop in sorted(spans)), max))
    labels = [NO_LOSS] * len(tokens["input_ids"])
    for index, (start, stop) in enumerate(tokens["offset_mapping"]):
        # Overlap, not inclusion: a template's last space may be one token with the first word of the answer.
        begun = bisect_left(starts, stop)  # spans that begin before the token ends
        if begun and start < reach[begun - 1]:
            labels[index] = tokens["input_ids"][index]
    return Example(input_ids=tokens["input_ids"], labels=labels)


# Lengths


def context_length(
    max_positions: int | None, tokenizer: PreTrainedTokenizerBase, requested: int | None
) -> int:
    """Return the `max_length` of examples, in tokens.

    It is the one requested, or else the lesser of the model's and the tokenizer's limit.

    Args:
        max_positions: `config.max_position_embeddings` of the model, `None` if it has no limit.
        tokenizer: Its `model_max_length` is only a default: a request may exceed it.
        requested: What the user asked for, `None` for the limit.

    Raises:
        ConfigError: The request is below 2 or beyond the model, or there is neither a request nor a limit.
    """
    if requested is not None:
        if requested < 2 or (max_positions is not None and requested > max_positions):
            most = "" if max_positions is None else f" and at most the model's {max_positions}"
            raise ConfigError(f"max_length must be at least 2{most} tokens, got {requested}")
        return requested
    limit = stated_limit(max_positions, tokenizer)
    if limit is None:
        raise ConfigError(
            "neither the model nor the tokenizer states how many tokens it can take; set max_length"
        )
    return limit


def stated_limit(max_positions: int | None, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the lesser of the model's and the tokenizer's limit in tokens, `None` if neither has one."""
    # transformers sets VERY_LARGE_INTEGER if a tokenizer states no limit.
    limits = [
        limit
        for limit in (max_positions, tokenizer.model_max_length)
        if limit is not None and limit < VERY_LARGE_INTEGER
    ]
    return min(limits, default=None)


def _cut(example: Example, max_length: int, where: str) -> Example:
    if max_length < 2:
        raise ConfigError(
            f"max_length must be at least 2 (one token to learn from and one to learn), got {max_length}"
        )
    prompt_length = next(index for index, label in enumerate(example["labels"]) if label != NO_LOSS)
    if prompt_length >= max_length:
        raise DataError(
            f"{where}: the prompt has {prompt_length} tokens, which leaves no room for an answer within "
            f"max_length={max_length}; raise max_length, shorten the prompt or drop the row"
        )
    return Example(input_ids=example["input_ids"][:max_length], labels=example["labels"][:max_length])


# Batches
