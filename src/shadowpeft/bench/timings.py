"""One line of the table as it grows: what is measured, its turns so far, and the row that they make."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from shadowpeft.bench.bare import Children
from shadowpeft.bench.measure import Call, Visit
from shadowpeft.bench.methods import config_of
from shadowpeft.bench.record import Row
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.specs import Spec


@dataclass
class Line:
    """What is known of one line of the table.

    Attributes:
        row: what does not change from turn to turn.
        visits: its turns.
        kept: the compiled method and what it replaces on the base, which later turns use again.
        status: `ok`, or why there is nothing more to measure.
    """

    row: Row
    visits: list[Visit] = field(default_factory=list)
    kept: tuple[Call, Children] | None = None
    status: str = "ok"

    def complete(self) -> Row:
        """Put the row together: the median of all steps, the range of their middle half as spread, the largest peak."""
        ms = [step for visit in self.visits for step in visit.ms]
        median = statistics.median(ms) if ms else None
        peaks = [visit.peak_gb for visit in self.visits if visit.peak_gb is not None]
        return {
            **self.row,
            "ms": median,
            "ms_spread": _middle_half(ms),
            "tokens_per_second": None
            if median is None
            else 1000 * self.row["batch"] * self.row["tokens"] / median,
            "peak_gb": max(peaks, default=None),
            "samples": [visit.ms for visit in self.visits],
            "loss": self.visits[-1].loss if self.visits else None,
            "status": self.status,
        }


def begin(spec: Spec, settings: Bench, facts: Row) -> Line:
    """Begin the line of a method; `facts` are those that all lines share."""
    row = {
        **facts,
        "method": spec.method,
        "impl": spec.impl,
        "inject_from": None,
        "compiled": spec.compiled,
        "name": spec.name,
        "variant": config_of(settings.variant).variant if spec.method == "shadow" else None,
        "checkpointing": isinstance(settings, TrainBench) and settings.checkpointing,
        "adapter_dtype": settings.adapter_dtype,
        "trainable": None,
        "compile_seconds": None,
        "warmup": settings.warmup,
    }
    return Line(row)


def _middle_half(ms: Sequence[float]) -> float | None:
    if len(ms) < 2:
        return None
    low, _, high = statistics.quantiles(ms, n=4, method="inclusive")
    return high - low
