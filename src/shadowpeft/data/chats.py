"""Chats as text: messages rendered by a chat template, and the spans of the answers in it."""

from collections.abc import Iterator
from dataclasses import replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shadowpeft.data.rows import Chat
from shadowpeft.data.turns import Turns, find_turns
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
    chat: Chat, tokenizer: PreTrainedTokenizerBase, where: str, generation_prompt: bool = False
) -> str:
    """Return messages as the chat template renders them.

    Args:
        chat: the messages, and what else the template reads.
        tokenizer: the tokenizer that has the template.
        where: file and line of the row, for messages.
        generation_prompt: end with what precedes an answer.

    Raises:
        DataError: the template refuses the messages.
    """
    try:
        return _render(chat, tokenizer, generation_prompt)
    # The last two are how templates and transformers fail on messages and tools of another form.
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: the chat template refuses these messages ({error}); change their roles, order or form"
        ) from error


def answers_in(
    text: str, chat: Chat, tokenizer: PreTrainedTokenizerBase, where: str
) -> Iterator[tuple[str | None, tuple[int, int]]]:
    """Find the answers of a chat in its rendered text.

    Args:
        text: the whole chat, rendered without a generation prompt.
        chat: a chat whose last message is an answer.
        tokenizer: the tokenizer that has the template.
        where: file and line of the row, for messages.

    Yields:
        content of an answer (`None` if it only calls tools), and the span of it and its end in `text`: the
        first character and one past the last. Earlier answers that the template renders differently once
        others follow are left out.

    Raises:
        DataError: the template does so with the last answer or with what precedes it.
    """
    last = len(chat.messages) - 1
    turns = find_turns(text, chat, tokenizer) if last >= _FEW else None
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant" or index < chat.learn_from:
            continue
        content = message.get("content") or ""
        bounds = _bounds(index, text, chat, tokenizer, turns)
        span = None if bounds is None else _learned(text, content, *bounds)
        if span is not None:
            yield None if message.get("tool_calls") and not content else content, span
        elif index == last:
            raise DataError(
                f"{where}: the chat template renders the messages before the last answer, with its "
                "generation prompt, other than in the whole chat, so generation would not start where "
                "training did; use prompt and completion strings or change the template"
            )


def opening(chat: Chat, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """Return what the template puts before the content of an answer to a chat, and generation has to.

    It is what some templates of models that think put there for an answer without thoughts: an empty block.

    Args:
        chat: the messages to answer.
        tokenizer: the tokenizer that has the template.
        where: file and line of the row, for messages.
    """
    asked = render(chat, tokenizer, where, generation_prompt=True)
    answer = {"role": "assistant", "content": _PROBE}
    try:
        answered = _render(replace(chat, messages=[*chat.messages, answer]), tokenizer, False)
    except (TemplateError, TypeError, ValueError):
        # That an answer cannot follow is said where there is one.
        return ""
    before, found, _ = answered.removeprefix(asked).partition(_PROBE)
    return before if found and answered.startswith(asked) else ""


# Up to so many messages, rendering each beginning of a chat takes less time than reading the template.
_FEW = 4
_PROBE = "answer"


def _bounds(
    index: int, text: str, chat: Chat, tokenizer: PreTrainedTokenizerBase, turns: Turns | None
) -> tuple[int, int] | None:
    """Return how long the messages before an answer are with the generation prompt, and how long with it.

    Return `None` if it or those before it are rendered otherwise in the whole chat.
    """
    if turns is not None and turns.holds(index):
        return turns.bounds(index)
    messages = chat.messages[: index + 1]
    try:
        before = _render(replace(chat, messages=messages[:-1]), tokenizer, generation_prompt=True)
        through = _render(replace(chat, messages=messages), tokenizer, generation_prompt=False)
    except (TemplateError, TypeError, ValueError):
        # Some templates refuse a chat that ends early, such as one with a system message alone.
        return None
    if not (through.startswith(before) and text.startswith(through)):
        return None
    return len(before), len(through)


def _learned(text: str, content: str, start: int, end: int) -> tuple[int, int] | None:
    """Return the learned span of an answer whose turn goes from `start` to `end`; `None` if it is empty."""
    # White space behind the end-of-turn token is never generated. If white space is all that ends a turn, it
    # is learned.
    stop = start + len(text[start:end].rstrip())
    if stop == start:
        stop = len(text[:end].rstrip())
    if content and text.endswith(content.rstrip(), 0, stop):
        stop = end
    return (start, stop) if stop > start else None


def _render(chat: Chat, tokenizer: PreTrainedTokenizerBase, generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(
        chat.messages, tokenize=False, add_generation_prompt=generation_prompt, **chat.options
    )
    assert isinstance(text, str)
    return text
