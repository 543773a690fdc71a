"""A bench from its settings to its measurements: methods take turns on one base (A B C A B C).

Every turn is recorded at once.
"""

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.bench import measure, methods, shapes
from shadowpeft.bench.check import NumericalTestFailed, check, check_compiled
from shadowpeft.bench.machine import device_name, few_objects_to_collect, on, status_of, tidy
from shadowpeft.bench.measurements import MeasurementFile
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.snapshot import BaseSnapshot
from shadowpeft.bench.specs import Spec
from shadowpeft.bench.timings import Timings, begin
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.reporting.devices import is_out_of_memory
from shadowpeft.reporting.progress import progress_bar
from shadowpeft.reporting.provenance import commit, versions


class Show(Protocol):
    """Shows the outcome of a turn; the timings of a turn that was left out are `None`."""

    def __call__(self, shape: str, spec: Spec, timings: Timings | None) -> None: ...  # noqa: D102


def bench(settings: Bench, device: torch.device, command: str) -> MeasurementFile:
    """Measure every method and return the file of the run.

    Args:
        settings: a `TrainBench` to time training steps; any other times prefills.
        device: where.
        command: what the measurements name as the command that made them.

    Raises:
        UserError: something that was asked for cannot be measured here; no weights were built.
        NumericalTestFailed: an implementation is wrong; the measurements of this run were removed.
    """
    unable = refuse(settings, device)
    file = MeasurementFile(settings.rows)
    deadline = time.monotonic() + (settings.limit_seconds or float("inf"))
    facts = {
        "kind": settings.kind,
        "device": device_name(device),
        "command": command,
        "versions": versions("triton", "shadow-peft"),
        "commit": commit(),
    }
    # torch limits how often it compiles one line of code, and several methods share some lines.
    with (
        on(device),
        few_objects_to_collect(),
        torch._dynamo.config.patch(recompile_limit=64),
        _progress(settings) as show,
    ):
        for shape in settings.shapes:
            try:
                # Without a name, so that nothing holds the base of a shape when the next one is built.
                _Rotation(settings, shape, device=device, file=file, facts=facts, unable=unable).run(
                    deadline, show
                )
            except NumericalTestFailed:
                file.withdraw()
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"the shape {shape} and its numerical test do not fit into the memory of {device}; "
                    "choose a smaller shape"
                ) from None
            torch.compiler.reset()  # what was compiled for the base of this shape
            tidy()
    return file


def refuse(settings: Bench, device: torch.device) -> dict[str, str]:
    """Refuse what cannot be measured before any weights are built.

    Returns:
        The implementations that were not asked for by name and cannot run here, with the reason.

    Raises:
        ConfigError: tokens beyond the context, a block beyond the last, a device or implementation that
            cannot be used.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device must be cpu or cuda, {device.type} cannot be timed yet; choose --device cpu"
        )
    specs, unable = settings.specs(), {}
    for shape in settings.shapes:
        config, (_, tokens) = shapes.SHAPES[shape].config(), settings.size(shape)
        context = arch.context_of(config)
        if context is not None and tokens > context:
            raise ConfigError(
                f"tokens must be at most {context:,}, the context of the shape {shape}, got {tokens:,}"
            )
        for spec in specs:
            spec.block(config.num_hidden_layers)
        for impl in {spec.impl for spec in specs if spec.impl is not None}:
            try:
                methods.refuse_impl(impl, config, settings.variant, settings.base_dtype(device), device)
            except ConfigError as error:
                if settings.methods is not None:
                    raise
                unable[impl] = str(error)
    return unable


class _Rotation:
    """The turns of all methods at one shape.

    Args:
        settings: the measurement.
        shape: the shape of the base, which is built here.
        device: where.
        file: gets the measurements.
        facts: what all measurements share.
        unable: implementations that cannot run here, with the reason.
    """

    def __init__(
        self,
        settings: Bench,
        shape: str,
        device: torch.device,
        file: MeasurementFile,
        facts: Mapping[str, Any],
        unable: Mapping[str, str],
    ) -> None:
        self.settings, self.shape, self.file = settings, shape, file
        dtype = settings.base_dtype(device)
        self.snapshot = BaseSnapshot(shapes.build(shape, device, dtype, seed=settings.seed))
        batch, tokens = settings.size(shape)
        vocabulary, generator = self.base.config.vocab_size, torch.Generator().manual_seed(settings.seed)
        self.ids_BT: Tensor = torch.randint(3, vocabulary, (batch, tokens), generator=generator).to(device)
        shared = {
            "shape": shape,
            "batch": batch,
            "tokens": tokens,
            "dtype": str(dtype).removeprefix("torch."),
            **facts,
        }
        self.timings = {spec: begin(spec, settings, shared) for spec in settings.specs()}
        for spec, timings in self.timings.items():
            if spec.impl is not None and spec.impl in unable:
                timings.status = f"missing: {unable[spec.impl]}"
                self._record(spec, timings)
        # Of the reference's worst gradient, for each type of what is trained.
        self.noise: dict[str | None, float] = {}

    @property
    def base(self) -> Any:
        """The base, with or without a method on it."""
        return self.snapshot.base

    def run(self, deadline: float, show: Show) -> None:
        """Test, then take turns until the rounds or the time are over."""
        for trained_in in self.settings.trained_in:
            impls = [
                spec.impl
                for spec, timings in self.timings.items()
                if spec.impl is not None and spec.trained_in == trained_in and timings.status == "ok"
            ]
            if not impls:
                continue
            self.noise[trained_in] = check(self.snapshot, impls, self.ids_BT, self.settings, trained_in)
            # The test compiles for few tokens. At the next length torch would compile for any length, which
            # is slower.
            torch.compiler.reset()
            tidy()
        for _ in range(self.settings.rounds):
            for spec, timings in self.timings.items():
                if time.monotonic() > deadline:
                    show(self.shape, spec, None)
                    return
                if timings.status == "ok":
                    self._try_turn(spec, timings)
                    self._record(spec, timings)
                show(self.shape, spec, timings)

    def _record(self, spec: Spec, timings: Timings) -> None:
        self.file.put(f"{self.shape} {spec.name} {spec.trained_in}", timings.measurement())

    def _try_turn(self, spec: Spec, timings: Timings) -> None:
        """Measure a method once; if it fails, that is recorded and the others go on."""
        try:
            self._turn(spec, timings)
        except NumericalTestFailed:
            raise
        except Exception as error:
            timings.status = status_of(error)
        # Outside the handler: until it ends, the frames of the error hold their tensors.
        if timings.status != "ok":
            timings.kept = None
        self.snapshot.restore()
        tidy()

    def _turn(self, spec: Spec, timings: Timings) -> None:
        if timings.kept is not None:
            runner, changes = timings.kept
            self.snapshot.reapply(changes)
            measure.prepare(runner.applied, self.settings)
        else:
            runner = self._first(spec, timings)
        if isinstance(self.settings, TrainBench):
            turn = measure.train(runner, self.base, self.ids_BT, settings=self.settings)
        else:
            turn = measure.prefill(runner, self.base, self.ids_BT, settings=self.settings)
        timings.turns.append(turn)

    def _first(self, spec: Spec, timings: Timings) -> measure.Runner:
        """Put a method on the base for its first turn; if it is compiled, compile, check and keep it."""
        torch.manual_seed(self.settings.seed)
        applied = methods.apply(spec, self.base, self.settings)
        runner = measure.Runner(applied, spec.compiled)
        measure.prepare(applied, self.settings)
        timings.facts |= {
            "inject_from": applied.inject_from,
            "trainable": sum(parameter.numel() for parameter in applied.trained()),
            "trained_dtype": _type_of(applied),
        }
        if spec.compiled:
            timings.kept = runner, self.snapshot.changes()
            noise = self.noise[spec.trained_in] if spec.method == "shadow" else None
            timings.facts["compile_seconds"] = check_compiled(
                runner, self.base, self.ids_BT, settings=self.settings, noise=noise
            )
        return runner


def _type_of(applied: methods.AppliedMethod) -> str | None:
    """Name the type of what a method trains; `None` where it trains nothing."""
    types = {str(parameter.dtype).removeprefix("torch.") for parameter in applied.trained()}
    return ", ".join(sorted(types)) or None


@contextmanager
def _progress(settings: Bench) -> Iterator[Show]:
    """Show the outcome of each turn on standard error."""
    total = len(settings.shapes) * settings.rounds * len(settings.specs())
    with progress_bar(f"bench {settings.kind}", total) as bar:

        def show(shape: str, spec: Spec, timings: Timings | None) -> None:
            bar.advance()
            bar.say(f"{shape} {_titled(spec)}: {_outcome(timings)}")

        yield show


def _titled(spec: Spec) -> str:
    """Return the name of a method, with the type of what it trains."""
    if spec.trained_in is None:
        return spec.name
    return f"{spec.name} ({spec.trained_in})"


def _outcome(timings: Timings | None) -> str:
    if timings is None:
        return "not begun, limit_seconds are over"
    if timings.status != "ok":
        return timings.status
    last = timings.turns[-1]
    outcome = f"{statistics.median(last.ms):.1f} ms"
    if last.peak_gb is not None:
        outcome += f", {last.peak_gb:.2f} GB"
    if len(timings.turns) == 1 and timings.facts["compile_seconds"] is not None:
        outcome += f", compiled in {timings.facts['compile_seconds']:.0f} s"
    return outcome
