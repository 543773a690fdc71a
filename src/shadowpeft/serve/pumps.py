"""The answers to one request, several at once, as one stream of events."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType

from shadowpeft.serve.backend import Piece
from shadowpeft.serve.errors import RequestError, internal, where_of

log = logging.getLogger(__name__)

# The choice that it belongs to, and a piece of it or why there is none.
Event = tuple[int, Piece | RequestError]


class Pumps:
    """Runs answers side by side while the context lasts; leaving it stops those that are not complete.

    Args:
        answers: one for each choice.
    """

    def __init__(self, answers: Sequence[AsyncGenerator[Piece, None]]) -> None:
        self._answers = answers
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Pumps":
        self._tasks = [
            asyncio.create_task(self._pump(index, answer)) for index, answer in enumerate(self._answers)
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def events(self, seconds: float | None = None) -> list[Event]:
        """Return the next events, at least one; none after so many seconds of silence."""
        if self._events.empty() and seconds is not None:
            try:
                first = await asyncio.wait_for(self._events.get(), seconds)
            except asyncio.TimeoutError:
                return []
        else:
            first = await self._events.get()
        found = [first]
        while not self._events.empty():
            found.append(self._events.get_nowait())
        return found

    async def _pump(self, index: int, answer: AsyncGenerator[Piece, None]) -> None:
        try:
            async with aclosing(answer):
                async for piece in answer:
                    self._events.put_nowait((index, piece))
        except RequestError as error:
            self._events.put_nowait((index, error))
        except Exception as error:
            log.error("an answer failed: %s", where_of(error))
            self._events.put_nowait((index, internal()))
