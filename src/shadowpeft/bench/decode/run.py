"""A bench of decoding from its settings to its measurements: methods take turns (A B C A B C).

Every turn is recorded at once.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.bench import shapes
from shadowpeft.bench.check import NumericalTestFailed
from shadowpeft.bench.decode.check import Reference, reference
from shadowpeft.bench.decode.graph import Graph
from shadowpeft.bench.decode.methods import Loader, Writer
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.bench.decode.specs import OURS, DecodeSpec
from shadowpeft.bench.decode.timings import Timings
from shadowpeft.bench.decode.ways import Compiled, Generate, Way
from shadowpeft.bench.decode.weights import SharedWeights
from shadowpeft.bench.machine import device_name, on, status_of, tidy
from shadowpeft.bench.measurements import Measurement, MeasurementFile
from shadowpeft.errors import ConfigError
from shadowpeft.reporting.provenance import commit, versions

Say = Callable[[str], None]

_WAYS: dict[str, Callable[[Writer, Tensor, int], Way]] = {
    "generate": Generate, "graph": Graph, "compiled": Compiled,
}  # fmt: skip


def decode(settings: DecodeBench, device: torch.device, command: str, say: Say) -> MeasurementFile:
    """Measure every method in every way and return the file of the run.

    Args:
        settings: the measurement.
        device: where.
        command: what the measurements name as the command that made them.
        say: gets a line for each turn.

    Raises:
        UserError: something that was asked for cannot be measured here; no weights were built.
        NumericalTestFailed: something of ours is wrong; the measurements of this run were removed.
    """
    refuse(settings, device)
    file = MeasurementFile(settings.rows)
    deadline = time.monotonic() + (settings.limit_seconds or float("inf"))
    facts = {
        "kind": "decode",
        "device": device_name(device),
        "command": command,
        "versions": versions("triton"),
        "commit": commit(),
    }
    # torch limits how often it compiles one line of code, and methods share lines.
    with on(device), torch._dynamo.config.patch(recompile_limit=64):
        for shape in settings.shapes:
            try:
                _Shape(settings, shape, device, file, facts, say).run(deadline)
            except NumericalTestFailed:
                file.withdraw()
                raise
            tidy()
    return file


def refuse(settings: DecodeBench, device: torch.device) -> None:
    """Refuse what cannot be measured before any weights are built.

    Raises:
        ConfigError: a prompt beyond the context, or a device that cannot be timed.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device must be cpu or cuda, {device.type} cannot be timed yet; choose --device cpu"
        )
    for shape in settings.shapes:
        limit = arch.context_of(shapes.SHAPES[shape].config())
        longest = max(settings.contexts(shape)) + settings.new_tokens
        if limit is not None and longest > limit:
            raise ConfigError(
                f"context and new_tokens must together be at most {limit:,}, the context of the shape "
                f"{shape}, got {longest:,}"
            )


class _Shape:
    """The turns of all methods at one shape.

    Args:
        settings: the measurement.
        shape: the shape of the base, which is built here.
        device: where.
        file: gets the measurements.
        facts: what all measurements share.
        say: gets a line for each turn.
    """

    def __init__(
        self,
        settings: DecodeBench,
        shape: str,
        device: torch.device,
        file: MeasurementFile,
        facts: Mapping[str, Any],
        say: Say,
    ) -> None:
        self.settings, self.shape, self.device, self.file, self.say = settings, shape, device, file, say
        dtype = settings.weights_dtype(device)
        base = shapes.build(shape, device, dtype, seed=settings.seed)
        self.vocabulary = base.config.vocab_size
        self.loader = Loader(SharedWeights(base), settings.variant, settings.seed)
        self.facts = {**facts, "shape": shape, "dtype": str(dtype).removeprefix("torch.")}
        self.writers: dict[DecodeSpec, Writer] = {}

    def run(self, deadline: float) -> None:
        """Measure each batch and context, in each way, until the time is over."""
        for context in self.settings.contexts(self.shape):
            for batch in self.settings.batches():
                if time.monotonic() > deadline:
                    self.say(f"{self.shape} {batch} x {context}: not begun, limit_seconds are over")
                    continue
                self._run_prompt(self._prompt(batch, context), deadline)

    def _prompt(self, batch: int, context: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed)
        ids_BT = torch.randint(3, self.vocabulary, (batch, context), generator=generator)
        return ids_BT.to(self.device)

    def _run_prompt(self, ids_BT: Tensor, deadline: float) -> None:
        own = [spec for spec in self.settings.specs() if spec.method in OURS]
        written = None
        if own:
            written = reference(self.loader, ids_BT)
            for impl in dict.fromkeys(spec.impl for spec in own):
                self._check_impl(written, str(impl))
            # The test compiles for few rows. For others torch would then compile for any number of rows.
            torch.compiler.reset()
        for way in self.settings.way_names():
            self._run_way(way, ids_BT, written, deadline)
            torch.compiler.reset()
            tidy()

    def _check_impl(self, written: Reference, impl: str) -> None:
        """Compare the logits of an implementation; one that cannot run here gets its row later."""
        try:
            model = self._writer(DecodeSpec("shadow", impl)).model
        except ConfigError:
            return
        written.require_same_logits(model, f"the implementation {impl!r}")

    def _run_way(self, way: str, ids_BT: Tensor, written: Reference | None, deadline: float) -> None:
        lines = [self._line(spec, way, ids_BT) for spec in self._specs(way)]
        for _ in range(self.settings.rounds):
            for line in lines:
                if line.status != "ok":
                    continue
                if time.monotonic() > deadline:
                    self.say(f"{_title(line)}: not begun, limit_seconds are over")
                    continue
                if not line.turns:
                    self.file.put(_key(line), line.cut_off())
                self._try_turn(line, way, ids_BT, written)
                self.file.put(_key(line), line.measurement())
                self.say(f"{_title(line)}: {_outcome(line)}")

    def _specs(self, way: str) -> Iterator[DecodeSpec]:
        """Return what there is to measure in a way: a step that writes one token has no drafts."""
        return (spec for spec in self.settings.specs() if way != "graph" or spec.draft_tokens is None)

    def _line(self, spec: DecodeSpec, way: str, ids_BT: Tensor) -> Timings:
        batch, context = ids_BT.shape
        own = {"way": way, "batch": batch, "context": context, "new_tokens": self.settings.new_tokens}
        return Timings(spec, {**self.facts, **own})

    def _try_turn(self, line: Timings, way: str, ids_BT: Tensor, written: Reference | None) -> None:
        """Measure a method once; if it fails, that is recorded and the others go on."""
        try:
            self._turn(line, way, ids_BT, written)
        except NumericalTestFailed:
            raise
        except Exception as error:
            line.status = status_of(error)
        # Outside the handler: until it ends, the frames of the error hold their tensors.
        if line.status != "ok":
            line.kept = None
        tidy()

    def _turn(self, line: Timings, way: str, ids_BT: Tensor, written: Reference | None) -> None:
        if line.kept is None:
            _require_gpu(way, self.device)
            line.kept = _WAYS[way](self._writer(line.spec), ids_BT, self.settings.new_tokens)
            new_BN = line.kept.first()
            if written is not None and line.spec.method in OURS:
                written.require_same_text(new_BN, f"{line.spec.name} ({way})")
        turn = line.kept.turn(self.settings.repeats)
        line.turns.append(turn)
        if isinstance(line.kept, Compiled):
            line.compile_seconds = line.kept.compile_seconds(turn)

    def _writer(self, spec: DecodeSpec) -> Writer:
        if spec not in self.writers:
            self.writers[spec] = self.loader.load(spec)
        return self.writers[spec]


def _require_gpu(way: str, device: torch.device) -> None:
    """Refuse a way that a CPU does not have.

    Raises:
        ConfigError: the device is a CPU.
    """
    needs = {
        "graph": "a CUDA graph needs an NVIDIA GPU",
        "compiled": "transformers compiles generation on a GPU alone",
    }
    if device.type != "cuda" and way in needs:
        raise ConfigError(f"{needs[way]}, the device is {device.type}")


def _key(line: Timings) -> str:
    facts = line.facts
    return " ".join(str(facts[name]) for name in ("shape", "batch", "context", "way")) + f" {line.spec.name}"


def _title(line: Timings) -> str:
    facts = line.facts
    return f"{facts['shape']} {facts['batch']} x {facts['context']} {facts['way']} {line.spec.name}"


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
