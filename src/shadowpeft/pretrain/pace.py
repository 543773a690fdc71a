"""How far a run has come, in steps or in seconds, and the learning rate that follows from it."""

import math
import time
from dataclasses import dataclass, field


@dataclass
class Pace:
    """How far a run has come.

    Args:
        max_steps: optimizer steps of the run; `None` if the clock ends it.
        max_seconds: seconds of the run; `None` if its steps end it.
        before: seconds that earlier sessions of the run trained.
    """

    max_steps: int | None
    max_seconds: float | None
    before: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def start(self) -> None:
        """Start the clock of this session."""
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds of training, with those of earlier sessions."""
        return self.before + time.monotonic() - self._began

    def share(self, step: int) -> float:
        """Return the share of the run that is over after `step` steps, from 0 to 1."""
        if self.max_seconds is not None:
            return min(1.0, self.seconds() / self.max_seconds)
        assert self.max_steps is not None
        return min(1.0, step / self.max_steps)

    def is_over(self) -> bool:
        """Return whether the time is up."""
        return self.max_seconds is not None and self.seconds() >= self.max_seconds


def rate_factor(pace: Pace, schedule: str, warmup: float, step: int) -> float:
    """Return the share of the peak learning rate for the step after `step`: rising in the warm-up, then as scheduled.

    Args:
        pace: how far the run has come.
        schedule: `cosine` or `linear` to 0, or `constant`.
        warmup: length of the warm-up in steps, or as a share of the run if below 1.
        step: optimizer steps so far.
    """
    share = pace.share(step)
    risen = 1.0
    if warmup >= 1:
        risen = (step + 1) / warmup
    elif warmup:
        # The first step of a run that the clock ends is at share 0; it must not train at rate 0.
        risen = (share + 1e-3) / warmup
    if risen < 1:
        return risen
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 1 - share if schedule == "linear" else 1.0
