"""A measurement from its settings to its rows: methods take turns on one base (A B C A B C), and each turn is recorded at once."""

import gc
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from shadowpeft import arch
from shadowpeft.bench import measure, methods, shapes
from shadowpeft.bench.bare import Bare
from shadowpeft.bench.check import Red, check, check_compiled
from shadowpeft.bench.line import Line, begin
from shadowpeft.bench.record import Record, Row
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.specs import Spec
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.reporting.devices import is_out_of_memory
from shadowpeft.reporting.provenance import commit, versions


class Show(Protocol):
    """Tells what a turn came to; `None` of one that was left out."""

    def __call__(self, shape: str, spec: Spec, line: Line | None) -> None: ...  # noqa: D102


def bench(settings: Bench, device: torch.device, command: str) -> Record:
    """Measure every method and return the record of the run.

    Args:
        settings: a `TrainBench` to time training steps, else prefills are timed.
        device: where.
        command: what the rows say made them.

    Raises:
        UserError: something that was asked for cannot be measured here; no weights were built.
        Red: the numerical test failed; the rows of this run were taken back.
    """
    unable = refuse(settings, device)
    record = Record(settings.rows)
    deadline = (
        time.monotonic() + settings.limit_seconds if settings.limit_seconds is not None else float("inf")
    )
    facts = {
        "kind": settings.kind,
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "command": command,
        "versions": versions("triton", "shadow-peft"),
        "commit": commit(),
    }
    gc.collect()
    gc.freeze()  # code, mostly; each collection between two turns would look through it again
    # torch counts what is compiled from one line of code, of which several methods share some.
    with _on(device), torch._dynamo.config.patch(recompile_limit=64), _progress(settings) as show:
        for shape in settings.shapes:
            try:
                _Rotation(settings, shape, device, record, facts, unable).run(deadline, show)
            except Red:
                record.withdraw()
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"the shape {shape} and its numerical test do not fit into the memory of {device}; choose a smaller shape"
                ) from None
            torch.compiler.reset()  # what was compiled at this shape, whose base goes
            _tidy()
    return record


def refuse(settings: Bench, device: torch.device) -> dict[str, str]:
    """Refuse what cannot be measured before any weights are built.

    Returns:
        Of the implementations that were not asked for by name, those that cannot run here, with the reason.

    Raises:
        ConfigError: tokens beyond the context, a block beyond the last, a device or implementation that cannot be used.
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
                with torch.device("meta"):
                    base = arch.build(config, "causal-lm").to(settings.base_dtype(device))  # type: ignore[arg-type]
                    methods.ours(base, settings.variant, impl)
                if impl == "triton" and device.type == "cpu" and torch.cuda.is_available():
                    raise ConfigError(
                        "impl='triton' needs a GPU, the device is cpu; choose --device cuda or another implementation"
                    )
            except ConfigError as error:
                if settings.methods is not None:
                    raise
                unable[impl] = str(error)
    return unable


class _Rotation:
    """The turns of all methods at one shape."""

    def __init__(
        self,
        settings: Bench,
        shape: str,
        device: torch.device,
        record: Record,
        facts: Row,
        unable: Mapping[str, str],
    ) -> None:
        self.settings, self.shape, self.record = settings, shape, record
        dtype = settings.base_dtype(device)
        self.bare = Bare(shapes.build(shape, device, dtype, settings.seed))
        batch, tokens = settings.size(shape)
        vocabulary, generator = self.bare.base.config.vocab_size, torch.Generator().manual_seed(settings.seed)
        self.ids_BT: Tensor = torch.randint(3, vocabulary, (batch, tokens), generator=generator).to(device)
        facts = {
            "shape": shape,
            "batch": batch,
            "tokens": tokens,
            "dtype": str(dtype).removeprefix("torch."),
            **facts,
        }
        self.lines = {spec: begin(spec, settings, facts) for spec in settings.specs()}
        for spec, line in self.lines.items():
            if spec.impl is not None and spec.impl in unable:
                line.status = f"missing: {unable[spec.impl]}"
                self.record.put(f"{shape} {spec.name}", line.complete())
        self.noise = 0.0

    def run(self, deadline: float, show: Show) -> None:
        """Test, then take turns until the rounds or the time are over."""
        impls = [
            spec.impl for spec, line in self.lines.items() if spec.impl is not None and line.status == "ok"
        ]
        if impls:
            self.noise = check(self.bare, impls, self.ids_BT, self.settings)
            torch.compiler.reset()  # what was compiled for few tokens would be compiled for any number of them at the next
            _tidy()
        for _ in range(self.settings.rounds):
            for spec, line in self.lines.items():
                if time.monotonic() > deadline:
                    show(self.shape, spec, None)
                    return
                if line.status == "ok":
                    self._turn(spec, line)
                    self.record.put(f"{self.shape} {spec.name}", line.complete())
                show(self.shape, spec, line)

    def _turn(self, spec: Spec, line: Line) -> None:
        """Measure a method once; what goes wrong with it is recorded and the others go on."""
        try:
            self._visit(spec, line)
        except Red:
            raise
        except ImportError as error:
            line.status = f"missing: {error.name or error} is not installed"
        except Exception as error:
            message = " ".join(str(error).split())[:300]
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            line.status = "out of memory" if is_out_of_memory(error) else f"failed: {kind}{message}"
        # Outside the handlers: until these end, the error's frames hold their tensors.
        if line.status != "ok":
            line.kept = None
        self.bare.take_off()
        _tidy()

    def _visit(self, spec: Spec, line: Line) -> None:
        settings, base, ids_BT = self.settings, self.bare.base, self.ids_BT
        if line.kept is not None:
            call, dressing = line.kept
            self.bare.put_on(dressing)
            measure.prepare(call.fitted, settings)
        else:
            torch.manual_seed(settings.seed)
            fitted = methods.fit(spec, base, settings)
            call = measure.Call(fitted, spec.compiled)
            measure.prepare(fitted, settings)
            line.row |= {
                "inject_from": fitted.inject_from,
                "trainable": sum(parameter.numel() for parameter in fitted.trained()),
            }
            if spec.compiled:
                line.kept = call, self.bare.dressing()
                noise = self.noise if spec.method == "shadow" else None
                line.row["compile_seconds"] = check_compiled(call, base, ids_BT, settings, noise)
        if isinstance(settings, TrainBench):
            line.visits.append(measure.train(call, base, ids_BT, settings))
        else:
            line.visits.append(measure.prefill(call, base, ids_BT, settings))


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _tidy() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _progress(settings: Bench) -> Iterator[Show]:
    """Say on standard error what each turn came to, under a bar where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = len(settings.shapes) * settings.rounds * len(settings.specs())
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"bench {settings.kind}", total=total)

        def show(shape: str, spec: Spec, line: Line | None) -> None:
            bar.advance(task)
            print(f"{shape} {spec.name}: {_outcome(line)}", file=sys.stderr, flush=True)

        yield show


def _outcome(line: Line | None) -> str:
    if line is None:
        return "not begun, limit_seconds are over"
    if line.status != "ok":
        return line.status
    last = line.visits[-1]
    peak = "" if last.peak_gb is None else f", {last.peak_gb:.2f} GB"
    compiled = (
        ""
        if len(line.visits) > 1 or line.row["compile_seconds"] is None
        else f", compiled in {line.row['compile_seconds']:.0f} s"
    )
    return f"{statistics.median(last.ms):.1f} ms{peak}{compiled}"
