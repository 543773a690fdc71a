"""How far a run has come, in steps or in seconds, and the learning rate that goes with it."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class Pace:
    """Tell the share of a run that is over.

    Args:
        max_steps: how many optimizer steps it has, unless
        max_seconds: how long it lasts.
        before: seconds that earlier sessions of it trained.
    """

    max_steps: int | None
    max_seconds: float | None
    before: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Begin to count this session's time."""
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Return how long the run has trained, earlier sessions included."""
        return self.before + time.monotonic() - self._began

    def share(self, step: int) -> float:
        """Return how much of the run is over after so many steps, from 0 to 1."""
        if self.max_seconds is not None:
            return min(1.0, self.seconds() / self.max_seconds)
        assert self.max_steps is not None
        return min(1.0, step / self.max_steps)

    def is_over(self) -> bool:
        """Tell whether the time is up."""
        return self.max_seconds is not None and self.seconds() >= self.max_seconds


def rate_factor(pace: Pace, schedule: str, warmup: float, step: int) -> float:
    """Return the share of the peak learning rate for the step that follows `step`: up through the warm-up, then as scheduled.

    Args:
        pace: tells how far the run has come.
        schedule: `cosine` or `linear` to 0, or `constant`.
        warmup: its length in steps, or as a share of the run if below 1.
        step: optimizer steps so far.
    """
    share = pace.share(step)
    risen = (step + 1) / warmup if warmup >= 1 else (share + 1e-3) / warmup if warmup else 1.0
    if risen < 1:
        return risen
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - share if schedule == "linear" else 1.0
