"""Replies as OpenAI's clients read them: bodies, and the chunks of a stream."""

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shadowpeft.serve.backend import Piece, Token, Usage

DONE = b"data: [DONE]\n\n"
# What stands for the logarithm of nothing, which JSON cannot write.
_NEVER = -9999.0


@dataclass
class Reply:
    """The reply to one request.

    Attributes:
        is_chat: whether it answers a chat.
        model: the name that the caller gave, or got.
        tells_tokens: the caller asked for log-probabilities.
        n: how many choices in a row have the same prompt.
        include_usage: a stream ends with a chunk that counts tokens.
    """

    is_chat: bool
    model: str
    tells_tokens: bool
    n: int = 1
    include_usage: bool = False
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self._begun: dict[int, int] = {}

    def chunk(self, index: int, piece: Piece) -> bytes:
        """Return a piece of one choice as an event of the stream."""
        choice: dict[str, Any] = {"index": index}
        first, offset = index not in self._begun, self._begun.get(index, 0)
        if self.is_chat:
            role = {"role": "assistant"} if first else {}
            choice["delta"] = {**role, "content": piece.text} if first or piece.text else {}
        else:
            choice["text"] = piece.text
        choice["logprobs"] = self._logprobs(piece.tokens, offset)
        choice["finish_reason"] = piece.finish
        if piece.notes:
            choice["shadow"] = piece.notes
        self._begun[index] = offset + len(piece.text)
        return self._event([choice], {"usage": None} if self.include_usage else {})

    def usage_chunk(self, usages: Sequence[Usage]) -> bytes:
        """Return the last event before the end of a stream that counts tokens."""
        return self._event([], {"usage": self._usage(usages)})

    def body(self, answers: Sequence[Piece]) -> dict[str, Any]:
        """Return the whole reply.

        Args:
            answers: all pieces of each choice as one.
        """
        kind = "chat.completion" if self.is_chat else "text_completion"
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usages = [answer.usage or Usage() for answer in answers]
        return {**self._head(kind), "choices": choices, "usage": self._usage(usages)}

    def _choice(self, index: int, answer: Piece) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index}
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": answer.text, "refusal": None}
        else:
            choice["text"] = answer.text
        choice["logprobs"] = self._logprobs(answer.tokens, 0)
        choice["finish_reason"] = answer.finish
        if answer.notes:
            choice["shadow"] = answer.notes
        return choice

    def _usage(self, usages: Sequence[Usage]) -> dict[str, int]:
        # A prompt is read for each of its choices, and counted once, as OpenAI does.
        prompt = sum(usage.prompt for usage in usages[:: self.n])
        completion = sum(usage.completion for usage in usages)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return event({**self._head(kind), "choices": choices, **more})

    def _head(self, kind: str) -> dict[str, Any]:
        number = f"chatcmpl-{self._id}" if self.is_chat else f"cmpl-{self._id}"
        return {"id": number, "object": kind, "created": self._created, "model": self.model}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        tokens = [token for token in tokens if not token.is_silent]
        if not self.tells_tokens or not tokens:
            return None
        return _of_chat(tokens) if self.is_chat else _of_text(tokens, offset)


def event(values: dict[str, Any]) -> bytes:
    """Return an event of a stream."""
    return b"data: " + json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def joined(pieces: Sequence[Piece]) -> Piece:
    """Return the pieces of an answer as one."""
    last = pieces[-1]
    notes: dict[str, Any] = {}
    for piece in pieces:
        notes |= piece.notes
    text = "".join(piece.text for piece in pieces)
    return replace(last, text=text, tokens=tuple(t for piece in pieces for t in piece.tokens), notes=notes)


def _of_chat(tokens: Sequence[Token]) -> dict[str, Any]:
    content = []
    for token in tokens:
        entry = {**_told(token.text, token.logprob), "top_logprobs": [_told(*each) for each in token.top]}
        # Not OpenAI's: by it a gateway before this one can score an answer as this one does.
        if token.entropy is not None:
            entry["entropy"] = token.entropy
        content.append(entry)
    return {"content": content, "refusal": None}


def _told(text: str, logprob: float | None) -> dict[str, Any]:
    # A part of a character has no text of its own, and its bytes are not known here.
    is_part = not text or "\ufffd" in text
    return {"token": text, "logprob": _number(logprob), "bytes": None if is_part else list(text.encode())}


def _of_text(tokens: Sequence[Token], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    told: dict[str, Any] = {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_number(token.logprob) for token in tokens],
        "top_logprobs": [{text: _number(value) for text, value in token.top} for token in tokens],
        "text_offset": offsets,
    }
    if all(token.entropy is not None for token in tokens):
        told["entropies"] = [token.entropy for token in tokens]
    return told


def _number(value: float | None) -> float | None:
    return _NEVER if value is not None and not math.isfinite(value) else value
