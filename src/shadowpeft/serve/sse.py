"""The events of a stream and the chunks in them, as servers that speak OpenAI's protocol send them."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from shadowpeft.serve.backend import Finish, Piece, Token, Usage

# The longest line of a stream.
_LINE = 1_000_000


class Broken(Exception):
    """A stream that is not as it must be.

    Args:
        what: what its server did, to go on from its name.
        kind: why, as `UpstreamError` has it.
    """

    def __init__(self, what: str, kind: str = "garbage") -> None:
        super().__init__(what)
        self.what, self.kind = what, kind


async def events_of(parts: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the objects of a stream up to its end, `[DONE]`, or to where it breaks off.

    Raises:
        Broken: something in it is no event, or it tells of an error.
    """
    async for line in _lines(parts):
        name, _, data = line.partition(b":")
        # Comments, and fields that this protocol does not use.
        if name != b"data":
            continue
        if data.strip() == b"[DONE]":
            return
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise Broken("sent an event that is not JSON") from None
        if not isinstance(found, dict):
            raise Broken("sent an event that is no object")
        if found.get("error"):
            raise Broken(f"failed in its answer: {said(found)}", kind="status")
        yield found


def said(body: Any) -> str:
    """Return the message of an error's body, in the forms that servers give it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]


def piece_of(event: dict[str, Any]) -> Piece:
    """Return what a chunk adds to the answer. `finish` and `usage` come in chunks of their own.

    Raises:
        Broken: it is none of the protocol.
    """
    try:
        usage = _usage(event.get("usage"))
        choices = event.get("choices") or []
        if not choices:
            return Piece(usage=usage)
        (choice,) = choices
        text = choice.get("text")
        if text is None:
            text = (choice.get("delta") or {}).get("content")
        text = "" if text is None else text
        if not isinstance(text, str):
            raise TypeError("text")
        tokens = _tokens(choice.get("logprobs"))
        return Piece(text, tokens, _finish(choice.get("finish_reason")), usage)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Broken(f"sent a chunk that is none of OpenAI's protocol ({type(error).__name__})") from None


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        if len(rest) > _LINE:
            raise Broken(f"sent a line of more than {_LINE} bytes")


def _usage(usage: Any) -> Usage | None:
    if usage is None:
        return None
    return Usage(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))


def _finish(reason: Any) -> Finish | None:
    if reason is None or reason == "stop" or reason == "length":
        return reason
    raise Broken(f"ended its answer for a reason that is none here: {str(reason)[:32]!r}")


def _tokens(logprobs: Any) -> tuple[Token, ...]:
    """Return the tokens of a chunk, told as for chats or, as older endpoints do, in columns."""
    if not logprobs:
        return ()
    if logprobs.get("content") is not None:
        return tuple(map(_token, logprobs["content"]))
    tops = logprobs.get("top_logprobs") or [{}] * len(logprobs["tokens"])
    told = zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    tokens = [Token(str(text), float(logprob), _sorted((top or {}).items())) for text, logprob, top in told]
    entropies = logprobs.get("entropies")
    if entropies is not None:
        pairs = zip(tokens, entropies, strict=True)
        tokens = [replace(token, entropy=float(entropy)) for token, entropy in pairs]
    return tuple(tokens)


def _token(entry: dict[str, Any]) -> Token:
    top = _sorted((each["token"], each["logprob"]) for each in entry.get("top_logprobs") or [])
    entropy = entry.get("entropy")
    return Token(
        str(entry["token"]), float(entry["logprob"]), top, None if entropy is None else float(entropy)
    )


def _sorted(pairs: Any) -> tuple[tuple[str, float], ...]:
    # Some servers put the chosen token last, however likely it is.
    found = [(str(text), float(logprob)) for text, logprob in pairs]
    return tuple(sorted(found, key=lambda pair: -pair[1]))
