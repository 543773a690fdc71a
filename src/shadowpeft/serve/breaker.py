"""How patient the gateway is with a server elsewhere: its tries, and a circuit breaker.

A server that failed several times in a row is left alone for a while.
"""

import time
from collections.abc import Callable

# Tries of one request, and the longest pause in seconds after the first of them, which doubles.
TRIES, PAUSE = 3, 0.25
# Seconds until a server that takes no connection is given up.
CONNECT = 5.0


class Breaker:
    """Counts failures in a row. Once it is open, one request in a while tries whether the server is back.

    Args:
        failures: so many in a row open it.
        seconds: how long it stays open before a try.
        clock: tells the time in seconds.
    """

    def __init__(
        self, failures: int = 5, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._seconds, self._clock = failures, seconds, clock
        self._failures, self._until, self._is_tried = 0, 0.0, False

    @property
    def is_open(self) -> bool:
        """Whether the server counts as away."""
        return self._failures >= self._most

    def lets_in(self) -> bool:
        """Return whether a request may go to the server; each that may ends by one of the three below."""
        if not self.is_open:
            return True
        if self._is_tried or self._clock() < self._until:
            return False
        self._is_tried = True
        return True

    def succeeded(self) -> None:
        """Note an answer."""
        self._failures, self._is_tried = 0, False

    def failed(self) -> None:
        """Note a failure."""
        self._failures, self._is_tried = self._failures + 1, False
        self._until = self._clock() + self._seconds

    def abandoned(self) -> None:
        """Note that a caller left before it was known."""
        self._is_tried = False
