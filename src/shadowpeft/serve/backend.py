"""What answers a request: a backend gives the answer piece by piece, and stops when nobody listens."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shadowpeft.serve.protocol import Ask

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    Attributes:
        text: what it adds to the answer; empty while a character is incomplete.
        logprob: its log-probability; `None` where none was asked for.
        top: the texts of the likeliest tokens at its place with theirs, the first one first.
        entropy: of the whole distribution, in nats; `None` where it is not known.
        id: its number in the vocabulary; `None` where it is not known.
        is_silent: it ends the answer, or a chat template opens answers with it. A policy scores it, and a
            caller is not told of it.
    """

    text: str
    logprob: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    entropy: float | None = None
    id: int | None = None
    is_silent: bool = False


@dataclass(frozen=True)
class Usage:
    """How many tokens an answer took."""

    prompt: int = 0
    completion: int = 0


@dataclass(frozen=True)
class Piece:
    """A part of an answer, as soon as it is sure.

    Attributes:
        text: what it adds.
        tokens: the tokens of the text, where log-probabilities were asked for.
        finish: why the answer ends here; `None` while it goes on.
        usage: with the last piece.
        notes: what is told of the answer beside it, such as its route; with any piece, each name once.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    usage: Usage | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Backend(Protocol):
    """Answers requests. Its methods run in the server's event loop."""

    @property
    def models(self) -> tuple[str, ...]:
        """The names of its models, the default first."""
        ...

    async def start(self) -> None:
        """Get ready.

        Raises:
            UserError: it never will be.
        """
        ...

    def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Answer a request. The last piece, and no other, has `finish` and `usage`.

        Closing the generator stops the work.

        Raises:
            RequestError: the request cannot be answered.
        """
        ...

    async def close(self) -> None:
        """End all work."""
        ...
