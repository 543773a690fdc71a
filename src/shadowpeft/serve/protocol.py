"""Requests as OpenAI's clients send them, read field by field: a field that is not implemented is refused."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from shadowpeft.checked_fields import nearest
from shadowpeft.serve.errors import RequestError

MOST_CHOICES, MOST_STOPS, MOST_TOP = 16, 4, 20
ROLES = ("system", "developer", "user", "assistant")
# OpenAI's own default, for completions alone.
_COMPLETION_TOKENS = 16

Prompt = str | tuple[int, ...]
# Who may answer: whom the policy says, one of the two for sure, or the edge and never anyone else.
Route = Literal["auto", "edge", "cloud", "local-only"]
ROUTES: tuple[Route, ...] = ("auto", "edge", "cloud", "local-only")


@dataclass(frozen=True)
class Ask:
    """One text that is asked for.

    Attributes:
        model: the name of the model; `None` for the server's default.
        prompt: what a text goes on from; `None` for a chat.
        messages: a chat, each with `role` and `content`.
        begun: the beginning of the answer, which is continued.
        max_tokens: the most tokens of the answer; `None` for as many as there is room for.
        temperature: 0 for the likeliest token at every step.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: decides what is drawn.
        stop: texts that end the answer, and are not in it.
        top: how many of the likeliest tokens are told with each; `None` for no log-probabilities.
        stream: the answer is wanted piece by piece.
        route: who may answer.
    """

    model: str | None = None
    prompt: Prompt | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    begun: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top: int | None = None
    stream: bool = False
    route: Route = "auto"

    @property
    def is_chat(self) -> bool:
        """Whether the answer is a turn of a chat."""
        return self.prompt is None


@dataclass(frozen=True)
class Request:
    """The body of a request.

    Attributes:
        asks: the texts that are asked for, one for each choice of the reply.
        n: how many of them in a row have the same prompt.
        include_usage: a stream ends with a chunk that counts tokens.
    """

    asks: tuple[Ask, ...]
    n: int = 1
    include_usage: bool = False

    @property
    def first(self) -> Ask:
        """The first text, which shares all but prompt and seed with the others."""
        return self.asks[0]


# Fields that are not implemented, and the value by which each asks for what is done anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "functions": ([],),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
}
_COMMON = frozenset(
    (
        "model",
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "n",
        "stream",
        "stream_options",
        "logprobs",
    )
)
CHAT_FIELDS = _COMMON | {
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "add_generation_prompt",
    "continue_final_message",
}
COMPLETION_FIELDS = _COMMON | {"prompt"}


def read_chat(body: bytes) -> Request:
    """Read the body of `/v1/chat/completions`.

    Raises:
        RequestError: names the field that is wrong, or is not implemented.
    """
    given = _fields(body, CHAT_FIELDS)
    messages = _messages(given)
    begun = ""
    if given.bool("continue_final_message"):
        if messages[-1]["role"] != "assistant" or given.bool("add_generation_prompt", default=False):
            raise RequestError(
                "continue_final_message goes on with a last message of the role assistant, with "
                "add_generation_prompt false",
                param="continue_final_message",
            )
        begun, messages = messages[-1]["content"], messages[:-1]
    elif messages[-1]["role"] == "assistant":
        raise RequestError(
            "the last message is of the role assistant, so there is nothing to answer; to go on with it, "
            "give continue_final_message: true",
            param="messages",
        )
    elif not given.bool("add_generation_prompt", default=True):
        raise RequestError(
            "add_generation_prompt may be false with continue_final_message alone",
            param="add_generation_prompt",
        )
    if not messages:
        raise RequestError("messages must hold a message to answer, got none", param="messages")
    top = None
    if given.bool("logprobs"):
        top = given.whole("top_logprobs", 0, MOST_TOP) or 0
    elif given.value("top_logprobs") is not None:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    ask = Ask(messages=messages, begun=begun, max_tokens=_max_tokens(given), top=top)
    return _request(given, [ask])


def read_completion(body: bytes) -> Request:
    """Read the body of `/v1/completions`.

    Raises:
        RequestError: names the field that is wrong, or is not implemented.
    """
    given = _fields(body, COMPLETION_FIELDS)
    top = given.whole("logprobs", 0, MOST_TOP)
    most = given.whole("max_tokens", 1)
    ask = Ask(max_tokens=_COMPLETION_TOKENS if most is None else most, top=top)
    return _request(given, [replace(ask, prompt=prompt) for prompt in _prompts(given.value("prompt"))])


class _Fields:
    """The fields of a body; `null` is not given."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def value(self, name: str) -> Any:
        return self._values.get(name)

    def bool(self, name: str, default: bool = False) -> bool:
        value = self.value(name)
        if value is not None and not isinstance(value, bool):
            raise _wrong(name, "true or false", value)
        return default if value is None else value

    def whole(self, name: str, least: int, most: int | None = None) -> int | None:
        value = self.value(name)
        if value is None:
            return None
        bounds = f"from {least} to {most}" if most is not None else f"{least} or more"
        # JSON's 1.0 is not what clients send for a whole number, and true is no number.
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(name, f"a whole number, {bounds}", value)
        if value < least or (most is not None and value > most):
            raise _wrong(name, f"a whole number, {bounds}", value)
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise _wrong(name, f"a number from {least} to {most}", value)
        if not least <= value <= most:
            raise _wrong(name, f"a number from {least} to {most}", value)
        return float(value)

    def text(self, name: str) -> str | None:
        value = self.value(name)
        if value is None:
            return None
        return _text(value, name)


def _request(given: _Fields, asks: list[Ask]) -> Request:
    """Give texts the fields that both endpoints share, and repeat them `n` times."""
    stream = given.bool("stream")
    common: dict[str, Any] = {
        "model": given.text("model"),
        "temperature": given.number("temperature", 0, 2, default=1.0),
        "top_p": given.number("top_p", 0, 1, default=1.0),
        "stop": _stops(given.value("stop")),
        "stream": stream,
    }
    seed, n = given.whole("seed", -(2**63), 2**63 - 1), given.whole("n", 1, MOST_CHOICES) or 1
    include_usage = _stream_options(given.value("stream_options"), stream)
    if n * len(asks) > MOST_CHOICES:
        raise RequestError(
            f"one request may ask for {MOST_CHOICES} texts, and {len(asks)} prompts with n={n} are "
            f"{n * len(asks)}; send several requests",
            param="n",
        )
    texts = [replace(ask, **common, seed=_seed(seed, index)) for ask in asks for index in range(n)]
    return Request(tuple(texts), n, include_usage)


def _seed(seed: int | None, index: int) -> int | None:
    """Return a seed of its own for each of `n` texts, the given one for the first."""
    return None if seed is None else seed + index


def _fields(body: bytes, known: frozenset[str]) -> _Fields:
    values = _parsed(body)
    if not isinstance(values, dict):
        raise RequestError(f"the body must be a JSON object, got {_kind(values)}")
    for name, value in values.items():
        if name in known or value is None or _is_neutral(name, value):
            continue
        if name in _NEUTRAL:
            raise RequestError(
                f"{name} is not implemented; leave it out", param=name, code="unsupported_parameter"
            )
        raise RequestError(
            f"there is no field {_shown(name)} here{nearest(name, known)}, and none is ignored; leave it out",
            param=_shown(name),
            code="unknown_parameter",
        )
    return _Fields(values)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise RequestError("the body must be JSON in UTF-8") from None
    # The last for a body that is nested too deeply.
    except (ValueError, RecursionError) as error:
        where = f" (at character {error.pos})" if isinstance(error, json.JSONDecodeError) else ""
        raise RequestError(f"the body is not valid JSON{where}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _is_neutral(name: str, value: Any) -> bool:
    neutral = _NEUTRAL.get(name, ())
    # True is 1 in Python.
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral)


def _messages(given: _Fields) -> tuple[Mapping[str, str], ...]:
    messages = given.value("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list of at least one message", messages)
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _wrong(where, "an object with role and content", message)
    for name, value in message.items():
        if name not in ("role", "content") and value not in (None, [], ""):
            raise RequestError(
                f"{where}.{_shown(name)} is not implemented; a message has role and content",
                param=f"{where}.{_shown(name)}",
                code="unsupported_parameter",
            )
    role = message.get("role")
    if role not in ROLES:
        raise _wrong(f"{where}.role", f"one of {', '.join(ROLES)}", role)
    # Newer models of OpenAI call the system's messages so.
    role = "system" if role == "developer" else role
    return {"role": role, "content": _content(message.get("content"), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    """Return a message's text, which may come in parts."""
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list):
        raise _wrong(where, "text, or a list of parts of the type text", content)
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise _wrong(where, "text, or a list of parts of the type text", kind)
    return "".join(_text(part["text"], where) for part in content)


def _prompts(prompt: Any) -> list[Prompt]:
    """Return the prompts of a completion: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [_text(prompt, "prompt")]
    if not isinstance(prompt, list) or not prompt:
        raise _wrong("prompt", "text, token ids, or a list of either that is not empty", prompt)
    if all(isinstance(part, str) for part in prompt):
        return [_text(part, "prompt") for part in prompt]
    if all(_is_id(part) for part in prompt):
        return [tuple(prompt)]
    if all(isinstance(part, list) and part and all(map(_is_id, part)) for part in prompt):
        return [tuple(part) for part in prompt]
    raise _wrong("prompt", "text, token ids, or a list of either that is not empty", prompt)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _max_tokens(given: _Fields) -> int | None:
    former, newer = given.whole("max_tokens", 1), given.whole("max_completion_tokens", 1)
    if former is not None and newer is not None and former != newer:
        raise RequestError(
            f"max_tokens ({former}) and max_completion_tokens ({newer}) name one number; give one",
            param="max_tokens",
        )
    return former if newer is None else newer


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    wanted = f"a text that is not empty, or a list of up to {MOST_STOPS}"
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise _wrong("stop", wanted, value)
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise _wrong("stop", wanted, value)
    return tuple(_text(stop, "stop") for stop in stops)


def _stream_options(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong("stream_options", "an object", options)
    if not stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    for name in options:
        if name != "include_usage":
            raise RequestError(
                f"stream_options.{_shown(name)} is not implemented; there is include_usage",
                param=f"stream_options.{_shown(name)}",
                code="unsupported_parameter",
            )
    return _Fields(options).bool("include_usage")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "text", value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can write half of a surrogate pair.
        raise RequestError(f"{where} holds half of a character (a lone surrogate)", param=where) from None
    return value


def _wrong(name: str, wanted: str, got: Any) -> RequestError:
    return RequestError(f"{name} must be {wanted}, got {_kind(got)}", param=name)


def _kind(value: Any) -> str:
    """Say what a value is, without a word of a prompt."""
    names: list[tuple[type, Callable[[Any], str]]] = [
        (type(None), lambda _: "null"),
        (bool, lambda value: str(value).lower()),
        (int, lambda value: str(value) if abs(value) < 10**15 else "a number too large"),
        (float, repr),
        (str, lambda value: repr(value) if len(value) <= 20 else f"a text of {len(value)} characters"),
        (list, lambda value: "a list" if value else "an empty list"),
        (dict, lambda _: "an object"),
    ]
    return next(say(value) for kind, say in names if isinstance(value, kind))


def _shown(name: str) -> str:
    """Return the name of a field as far as a message has room for it."""
    return name.encode("ascii", "backslashreplace").decode()[:64]
