"""The turns of one method in one way as they grow, and the measurement that they make."""

import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.ways import Turn, Way
from shadowpeft.bench.measurements import Measurement
from shadowpeft.bench.timings import middle_half
from shadowpeft.generate import DraftReport

CUT_OFF = "cut off: the process ended while this was measured"


@dataclass
class Timings:
    """What is known of one line of the table.

    Attributes:
        spec: the method.
        facts: what does not change from turn to turn.
        turns: its turns.
        kept: the method once it has written, with its prompt, in its way.
        compile_seconds: the time of the first call beyond that of a later one; `None` if nothing compiles.
        status: `ok`, or why there is nothing more to measure.
    """

    spec: DecodeSpec
    facts: Measurement
    turns: list[Turn] = field(default_factory=list)
    kept: Way | None = None
    compile_seconds: float | None = None
    status: str = "ok"

    def measurement(self) -> Measurement:
        """Return the medians of all texts, and the range of the middle half of their times."""
        token_ms = [ms for turn in self.turns for ms in turn.token_ms]
        median = _median(token_ms)
        return {
            **self.facts,
            **_identity(self.spec),
            "ms_per_token": median,
            "ms_spread": middle_half(token_ms),
            "tokens_per_second": median and 1000 * self.facts["batch"] / median,
            "first_token_ms": _median([ms for turn in self.turns for ms in turn.first_ms]),
            "call_ms": _median([ms for turn in self.turns for ms in turn.call_ms]),
            "compile_seconds": self.compile_seconds,
            **_drafting([report for turn in self.turns for report in turn.reports], median),
            "samples": [turn.token_ms for turn in self.turns],
            "status": self.status,
        }

    def cut_off(self) -> Measurement:
        """Return what stands in the file if the process does not come back."""
        return {**self.measurement(), "status": CUT_OFF}


def _identity(spec: DecodeSpec) -> dict[str, Any]:
    return {
        "method": spec.method,
        "impl": spec.impl,
        "draft_tokens": spec.draft_tokens,
        "name": spec.name,
    }


def _drafting(reports: list[DraftReport], ms_per_token: float | None) -> dict[str, Any]:
    """Return how well drafting went; `None` where nothing was drafted."""
    rounds, tokens = sum(report.rounds for report in reports), sum(report.tokens for report in reports)
    if not rounds or ms_per_token is None:
        return {"tokens_per_round": None, "ms_per_round": None, "acceptance": None}
    put = _sums([report.drafted for report in reports])
    taken = _sums([report.accepted for report in reports])
    return {
        "tokens_per_round": tokens / rounds,
        "ms_per_round": ms_per_token * tokens / rounds,
        "acceptance": [took / given for took, given in zip(taken, put, strict=True)],
    }


def _sums(lists: list[list[int]]) -> list[int]:
    """Add lists of different lengths, position by position."""
    return [sum(counts) for counts in itertools.zip_longest(*lists, fillvalue=0)]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None
