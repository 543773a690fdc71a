"""The timings of one method as they grow turn by turn, and the measurement that they make."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from shadowpeft.bench.measure import Runner, Turn
from shadowpeft.bench.measurements import Measurement
from shadowpeft.bench.methods import config_of
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.snapshot import Changes
from shadowpeft.bench.specs import Spec


@dataclass
class Timings:
    """What is known of one method: a line of the table.

    Attributes:
        facts: what does not change from turn to turn.
        turns: its turns.
        kept: the compiled method and what it replaces on the base, which later turns use again.
        status: `ok`, or why there is nothing more to measure.
    """

    facts: Measurement
    turns: list[Turn] = field(default_factory=list)
    kept: tuple[Runner, Changes] | None = None
    status: str = "ok"

    def measurement(self) -> Measurement:
        """Return the median of all steps, the range of their middle half, and the largest peak."""
        ms = [step for turn in self.turns for step in turn.ms]
        median = tokens_per_second = loss = None
        if ms:
            median = statistics.median(ms)
            tokens_per_second = 1000 * self.facts["batch"] * self.facts["tokens"] / median
            loss = self.turns[-1].loss
        peaks = [turn.peak_gb for turn in self.turns if turn.peak_gb is not None]
        return {
            **self.facts,
            "ms": median,
            "ms_spread": middle_half(ms),
            "tokens_per_second": tokens_per_second,
            "peak_gb": max(peaks, default=None),
            "samples": [turn.ms for turn in self.turns],
            "loss": loss,
            "status": self.status,
        }


def begin(spec: Spec, settings: Bench, facts: Measurement) -> Timings:
    """Begin the timings of a method; `facts` are those that all methods share."""
    variant = config_of(settings.variant).variant if spec.method == "shadow" else None
    own = {
        "method": spec.method,
        "impl": spec.impl,
        "inject_from": None,
        "compiled": spec.compiled,
        "name": spec.name,
        "variant": variant,
        "checkpointing": isinstance(settings, TrainBench) and settings.checkpointing,
        "adapter_dtype": spec.trained_in,
        "trained_dtype": None,
        "trainable": None,
        "compile_seconds": None,
        "warmup": settings.warmup,
    }
    return Timings({**facts, **own})


def middle_half(ms: Sequence[float]) -> float | None:
    """Return the range of the middle half of some times; `None` for fewer than two."""
    if len(ms) < 2:
        return None
    low, _, high = statistics.quantiles(ms, n=4, method="inclusive")
    return high - low
