"""The turns of all methods with the same prompts (A B C A B C), each recorded at once."""

import gc
import time
from collections.abc import Callable, Sequence

import torch

from shadowpeft.bench.check import NumericalTestFailed
from shadowpeft.bench.decode.check import Reference, reference
from shadowpeft.bench.decode.graph import Graph
from shadowpeft.bench.decode.methods import Writer
from shadowpeft.bench.decode.prompts import Prompt
from shadowpeft.bench.decode.specs import OURS, DecodeSpec
from shadowpeft.bench.decode.timings import Timings
from shadowpeft.bench.decode.ways import Compiled, Generate, Way
from shadowpeft.bench.machine import status_of, tidy
from shadowpeft.bench.measurements import Measurement, MeasurementFile

Say = Callable[[str], None]

# Attached as the specification computes it, with which all of ours is compared.
ATTACHED = DecodeSpec("shadow", "reference")
_WAYS: dict[str, Callable[[Writer, Sequence[Prompt]], Way]] = {
    "generate": Generate, "graph": Graph, "compiled": Compiled,
}  # fmt: skip


class Rotation:
    """The turns with one or several prompts.

    Args:
        prompts: the prompts.
        writer: builds a method, or returns the one that was built.
        rounds: how often the methods take turns.
        repeats: how often a turn times each text.
        deadline: when no further turn begins, as `time.monotonic` counts.
        file: gets the measurements.
        say: gets a line for each turn.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        writer: Callable[[DecodeSpec], Writer],
        rounds: int,
        repeats: int,
        deadline: float,
        file: MeasurementFile,
        say: Say,
    ) -> None:
        self.prompts, self.writer = prompts, writer
        self.rounds, self.repeats, self.deadline = rounds, repeats, deadline
        self.file, self.say = file, say

    def run(self, lines: Sequence[Sequence[Timings]]) -> None:
        """Test, then let the methods take turns, in one way after the other.

        Args:
            lines: for each way, what is measured in it.

        Raises:
            NumericalTestFailed: something of ours is wrong.
        """
        flat = [line for of_way in lines for line in of_way]
        for line in flat:
            if line.status != "ok":
                self._record(line)
        impls = {str(line.spec.impl) for line in flat if line.status == "ok" and line.spec.method in OURS}
        written = self._test(sorted(impls)) if impls and time.monotonic() <= self.deadline else []
        for of_way in lines:
            self._take_turns(of_way, written)
            for line in of_way:
                line.kept = None
            torch.compiler.reset()
            tidy()

    def _test(self, impls: Sequence[str]) -> list[Reference]:
        """Compare implementations with the reference, and return what it writes behind each prompt."""
        written = [reference(self.writer(ATTACHED).model, prompt.ids_BT) for prompt in self.prompts]
        for impl in impls:
            model = self.writer(DecodeSpec("shadow", impl)).model
            written[0].require_same_logits(model, f"the implementation {impl!r}")
        # The test compiles for few rows. For others torch would then compile for any number of rows.
        torch.compiler.reset()
        tidy()
        return written

    def _take_turns(self, lines: Sequence[Timings], written: Sequence[Reference]) -> None:
        for _ in range(self.rounds):
            for line in lines:
                if line.status != "ok":
                    continue
                if time.monotonic() > self.deadline:
                    self.say(f"{_title(line)}: not begun, limit_seconds are over")
                    return
                if not line.turns:
                    self.file.put(_title(line), line.cut_off())
                self._try_turn(line, written)
                self._record(line)

    def _record(self, line: Timings) -> None:
        self.file.put(_title(line), line.measurement())
        self.say(f"{_title(line)}: {_outcome(line)}")

    def _try_turn(self, line: Timings, written: Sequence[Reference]) -> None:
        """Measure a method once; if it fails, that is recorded and the others go on."""
        try:
            self._turn(line, written)
        except NumericalTestFailed:
            raise
        except Exception as error:
            line.status = status_of(error)
        # Outside the handler: until it ends, the frames of the error hold their tensors.
        if line.status != "ok":
            line.kept = None
            tidy()
        # The device's memory stays with the process: to ask for it again takes time. The host's garbage would
        # be collected during a turn.
        gc.collect()

    def _turn(self, line: Timings, written: Sequence[Reference]) -> None:
        if line.kept is None:
            line.kept = _WAYS[line.facts["way"]](self.writer(line.spec), self.prompts)
            texts = line.kept.first()
            if line.spec.method in OURS:
                for text_BN, own in zip(texts, written, strict=True):
                    own.require_same_text(text_BN, f"{line.spec.name} ({line.facts['way']})")
        line.turns.append(line.kept.turn(self.repeats))
        if isinstance(line.kept, Compiled):
            line.compile_seconds = line.kept.compile_seconds(line.turns[0])


def _title(line: Timings) -> str:
    facts = line.facts
    name = facts["shape"] or facts["model"]
    return f"{name} {facts['batch']} x {facts['context']} {facts['way']} {line.spec.name}"


def _outcome(line: Timings) -> str:
    if line.status != "ok":
        return line.status
    found: Measurement = line.measurement()
    outcome = f"{found['ms_per_token']:.3f} ms a token, first token {found['first_token_ms']:.1f} ms"
    if found["tokens_per_round"] is not None:
        outcome += f", {found['tokens_per_round']:.2f} tokens a round"
    if len(line.turns) == 1 and line.compile_seconds is not None:
        outcome += f", compiled in {line.compile_seconds:.0f} s"
    return outcome
