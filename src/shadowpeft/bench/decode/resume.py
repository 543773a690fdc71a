"""What an earlier run has measured already, so that a run that was cut off can be continued."""

from collections.abc import Mapping, Sequence
from typing import Any

from shadowpeft.bench.decode.timings import CUT_OFF
from shadowpeft.bench.measurements import Measurement

# What differs between two runs of the same measurement.
_OF_A_RUN = ("command",)


class Earlier:
    """The measurements of a file.

    Args:
        measurements: all of them, oldest first; none, if nothing is to be resumed.
    """

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._measurements = measurements

    def finished(self, facts: Mapping[str, Any], name: str) -> Measurement | None:
        """Return the last one of a method that came to its end under the same facts, if there is one."""
        found = [entry for entry in self._under(facts) if entry["name"] == name and _ended(entry)]
        return found[-1] if found else None

    def with_their_bases(
        self, facts: Mapping[str, Any], finished: Sequence[Measurement]
    ) -> list[Measurement]:
        """Return measurements behind those of the base in the same runs, which they are compared with."""
        runs = {entry["run"] for entry in finished}
        bases = [entry for entry in self._under(facts) if entry["name"] == "base" and entry["run"] in runs]
        return [*bases, *(entry for entry in finished if entry not in bases)]

    def _under(self, facts: Mapping[str, Any]) -> list[Measurement]:
        wanted = {key: value for key, value in facts.items() if key not in _OF_A_RUN}
        # A measurement of something else has other fields.
        return [
            entry
            for entry in self._measurements
            if all(key in entry and entry[key] == wanted[key] for key in wanted)
        ]


def _ended(found: Measurement) -> bool:
    """Return whether there is nothing left to measure: all rounds are done, or the method has failed."""
    if found["status"] == "ok":
        return len(found["samples"]) >= int(found["rounds"])
    return bool(found["status"] != CUT_OFF)
