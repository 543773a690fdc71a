"""How much the server takes on: requests at once, a queue behind them, sizes, and who may ask."""

import asyncio
import hmac
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.requests import Request

from shadowpeft.serve.errors import RequestError


class Gate:
    """Lets so many requests in at once, in the order in which they came.

    Args:
        most: requests that are worked on at once.
        queue: requests that may wait for one of them to end.

    Attributes:
        inside: requests that are worked on.
        closing: the server ends, and lets nobody in any more.
    """

    def __init__(self, most: int, queue: int) -> None:
        self._most, self._queue = most, queue
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.inside = 0
        self.closing = False

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait to be let in, and be inside while the context lasts.

        Raises:
            RequestError: too many wait already, or the server ends.
        """
        if self.closing:
            raise RequestError("the server is shutting down", 503, code="shutting_down", retry_after=5)
        if self.inside < self._most and not self._waiting:
            self.inside += 1
        else:
            await self._wait()
        try:
            yield
        finally:
            self._leave()

    async def _wait(self) -> None:
        if len(self._waiting) >= self._queue:
            raise RequestError(
                f"{self.inside} requests are being answered and {len(self._waiting)} wait, and this server "
                "takes no more; try again",
                429,
                code="queue_full",
                retry_after=1,
            )
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            # Whoever leaves lets the next one in, so that nobody overtakes.
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._leave()
            else:
                self._waiting.remove(place)
            raise

    def _leave(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.inside -= 1


async def body_of(request: Request, most: int) -> bytes:
    """Read the body of a request.

    Raises:
        RequestError: it is no JSON by its header, or has more than `most` bytes.
    """
    kind = request.headers.get("content-type", "")
    # Also keeps pages of other origins away: for this type a browser asks first, and gets no leave.
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(f"the content type must be application/json, got {kind[:64]!r}", 415)
    too_large = RequestError(f"the body may have {most} bytes", 413, code="request_too_large")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated[:20]) > most:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def require_key(request: Request, keys: Sequence[str]) -> None:
    """Refuse a request without one of the keys, if there are any.

    Raises:
        RequestError: it has none, or another.
    """
    if not keys:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    # All of them, each in a time that does not tell how much of it was right.
    right = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if scheme.lower() != "bearer" or not any(right):
        raise RequestError(
            "this server asks for a key, as Authorization: Bearer KEY", 401, code="invalid_api_key"
        )
