"""Chats as text: messages rendered by a chat template, and the spans of the answers in it."""

from collections.abc import Iterator
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shadowpeft.data.rows import Chat
from shadowpeft.errors import DataError


def refuse_tokenizer(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Raise unless chats can be encoded with a tokenizer.

    Raises:
        DataError: it has no chat template, or cannot say which characters a token stands for.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"{where}: the row is a chat but the tokenizer has no chat template; use prompt and completion "
            "strings, a chat model's tokenizer, or set tokenizer.chat_template"
        )
    if not tokenizer.is_fast:
        raise DataError(
            f"{where}: chats need a fast tokenizer (one with tokenizer.json), got "
            f"{type(tokenizer).__name__}; "
            "convert it"
        )


def render(
    messages: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    generation_prompt: bool = False,
) -> str:
    """Return messages as the chat template renders them.

    Args:
        messages: at least one.
        tokenizer: the tokenizer that has the template.
        where: file and line of the row, for messages.
        generation_prompt: end with what precedes an answer.

    Raises:
        DataError: the template refuses the messages.
    """
    try:
        return _render(messages, tokenizer, generation_prompt)
    except TemplateError as error:
        raise DataError(
            f"{where}: the chat template refuses these messages ({error}); change their roles or order"
        ) from error


def answers_in(
    text: str, chat: Chat, tokenizer: PreTrainedTokenizerBase, where: str
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Find the answers of a chat in its rendered text.

    Args:
        text: the whole chat, rendered without a generation prompt.
        chat: a chat whose last message is an answer.
        tokenizer: the tokenizer that has the template.
        where: file and line of the row, for messages.

    Yields:
        content of an answer, and the span of it and its end in `text`: the first character and one past the
        last. Earlier answers that the template renders differently once others follow are left out.

    Raises:
        DataError: the template does so with the last answer or with what precedes it.
    """
    last = len(chat.messages) - 1
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant" or index < chat.learn_from:
            continue
        span = _span_of_last(chat.messages[: index + 1], text, tokenizer)
        if span is not None:
            yield message["content"], span
        elif index == last:
            raise DataError(
                f"{where}: the chat template renders the messages before the last answer, with its "
                "generation prompt, other than in the whole chat, so generation would not start where "
                "training did; use prompt and completion strings or change the template"
            )


def _span_of_last(
    messages: list[dict[str, Any]], text: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int] | None:
    """Find the last of `messages` in `text`; `None` if it or those before it are rendered otherwise there."""
    try:
        before = _render(messages[:-1], tokenizer, generation_prompt=True)
        through = _render(messages, tokenizer, generation_prompt=False)
    except TemplateError:
        # Some templates refuse a chat that ends early, such as one with a system message alone.
        return None
    if not (through.startswith(before) and text.startswith(through)):
        return None
    # White space behind the end-of-turn token is never generated. If white space is all that ends a turn, it
    # is learned.
    stop = len(through.rstrip())
    if through[:stop].endswith(messages[-1]["content"].rstrip()):
        stop = len(through)
    if stop <= len(before):
        return None
    return len(before), stop


def _render(
    messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool
) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    assert isinstance(text, str)
    return text
