"""A bench of decoding from its settings to its measurements: methods take turns (A B C A B C).

Every turn is recorded at once.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from shadowpeft import arch
from shadowpeft.bench.check import NumericalTestFailed
from shadowpeft.bench.decode.methods import Loader, Writer
from shadowpeft.bench.decode.prompts import (
    Prompt,
    facts_of,
    random_prompt,
    read_prompts,
    up_to_their_ends,
)
from shadowpeft.bench.decode.refusals import refuse
from shadowpeft.bench.decode.resume import Earlier
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.subject import Subject, subjects_of
from shadowpeft.bench.decode.timings import Timings
from shadowpeft.bench.decode.turns import ATTACHED, Rotation, Say
from shadowpeft.bench.decode.weights import SharedWeights
from shadowpeft.bench.machine import device_name, few_objects_to_collect, on, tidy
from shadowpeft.bench.measurements import Measurement, MeasurementFile, read
from shadowpeft.errors import UserError
from shadowpeft.reporting.devices import is_out_of_memory
from shadowpeft.reporting.provenance import commit, versions


def decode(
    settings: DecodeBench, device: torch.device, command: str, say: Say
) -> tuple[MeasurementFile, list[Measurement]]:
    """Measure every method in every way.

    Args:
        settings: the measurement.
        device: where.
        command: what the measurements name as the command that made them.
        say: gets a line for each turn.

    Returns:
        The file of the run, and all measurements that were asked for, with those of an earlier run that is
        resumed.

    Raises:
        UserError: something that was asked for cannot be measured here; no weights were built.
        NumericalTestFailed: something of ours is wrong; the measurements of this run were removed.
    """
    unable = refuse(settings, device)
    file = MeasurementFile(settings.rows)
    deadline = time.monotonic() + (settings.limit_seconds or float("inf"))
    facts = {
        "kind": "decode",
        "device": device_name(device),
        "command": command,
        "versions": versions("triton"),
        "commit": commit(),
    }
    earlier = Earlier(read(settings.rows) if settings.resume else [])
    found: list[Measurement] = []
    # torch limits how often it compiles one line of code, and methods share lines.
    with on(device), few_objects_to_collect(), torch._dynamo.config.patch(recompile_limit=64):
        for subject in subjects_of(settings):
            if time.monotonic() > deadline:
                say(f"{subject.name}: not begun, limit_seconds are over")
                continue
            try:
                bench = _Bench(settings, subject, device, file, facts, earlier, unable, say)
                found += bench.run(deadline)
            except NumericalTestFailed:
                file.withdraw()
                raise
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                raise UserError(
                    f"{subject.name} and its numerical test do not fit into the memory of {device}; choose "
                    "a smaller model"
                ) from None
            # Or the next base would be built beside this one.
            del bench
            tidy()
    return file, [*found, *file.measurements.values()]


class _Bench:
    """The turns of all methods on one base.

    Args:
        settings: the measurement.
        subject: the base, which is built here.
        device: where.
        file: gets the measurements.
        facts: what all measurements share.
        earlier: what is left out.
        unable: ways and implementations that cannot run here, with the reason.
        say: gets a line for each turn.
    """

    def __init__(
        self,
        settings: DecodeBench,
        subject: Subject,
        device: torch.device,
        file: MeasurementFile,
        facts: Mapping[str, Any],
        earlier: Earlier,
        unable: Mapping[str, str],
        say: Say,
    ) -> None:
        self.settings, self.subject, self.device, self.file = settings, subject, device, file
        self.earlier, self.unable, self.say = earlier, unable, say
        dtype = settings.weights_dtype(device)
        base = subject.base(device, dtype, settings.seed)
        self.config = base.config
        self.loader = Loader(SharedWeights(base), subject, settings.variant, settings.seed)
        own = {
            "variant": settings.variant,
            "seed": settings.seed,
            "data": settings.data,
            "rounds": settings.rounds,
            "repeats": settings.repeats,
        }
        self.facts = {**facts, **subject.facts, "dtype": str(dtype).removeprefix("torch."), **own}
        self.writers: dict[DecodeSpec, Writer] = {}

    def run(self, deadline: float) -> list[Measurement]:
        """Measure with each prompt, in each way, until the time is over; return what is left out."""
        left_out: list[Measurement] = []
        for prompts in self._prompts():
            lines = []
            for way in self.settings.way_names():
                of_way, done = self._lines(way, prompts)
                lines.append(of_way)
                left_out += done
            rotation = Rotation(
                prompts, self._writer, rounds=self.settings.rounds, repeats=self.settings.repeats,
                deadline=deadline, file=self.file, say=self.say,
            )  # fmt: skip
            rotation.run(lines)
        return left_out

    def _lines(self, way: str, prompts: Sequence[Prompt]) -> tuple[list[Timings], list[Measurement]]:
        """Return what there is to measure in a way, and what an earlier run has measured."""
        # A step that writes one token has no drafts.
        specs = [spec for spec in self.settings.specs() if way != "graph" or spec.draft_tokens is None]
        lines = [self._line(spec, way, prompts) for spec in specs]
        found = ((line.spec, self.earlier.finished(line.facts, line.spec.name)) for line in lines)
        done = {spec: row for spec, row in found if row is not None}
        rows = self.earlier.with_their_bases(lines[0].facts, list(done.values())) if lines else []
        if len(done) == len(lines):
            return [], rows
        # What is left is compared with the base as it is now.
        return [line for line in lines if line.spec not in done or line.spec.method == "base"], rows

    def _line(self, spec: DecodeSpec, way: str, prompts: Sequence[Prompt]) -> Timings:
        line = Timings(spec, {**self.facts, "way": way, **facts_of(prompts)})
        why = self.unable.get(way) or self.unable.get(spec.impl or "")
        if why is not None:
            line.status = f"missing: {why}"
        return line

    def _prompts(self) -> Iterator[list[Prompt]]:
        """Return what is continued together: a random prompt of each size, or the texts of a file."""
        settings = self.settings
        if settings.data is not None:
            limit = arch.context_of(self.config)
            texts = read_prompts(
                settings.data, settings.split, settings.texts, self.subject.tokenizer(), limit,
                settings.new_tokens,
            )  # fmt: skip
            yield up_to_their_ends(self._writer(ATTACHED).model, texts, settings.new_tokens)
            return
        draw = partial(
            random_prompt, self.config.vocab_size, new_tokens=settings.new_tokens, seed=settings.seed,
            device=self.device,
        )  # fmt: skip
        for context in settings.contexts(self.subject.shape):
            for batch in settings.batches():
                yield [draw(batch=batch, context=context)]

    def _writer(self, spec: DecodeSpec) -> Writer:
        if spec not in self.writers:
            self.writers[spec] = self.loader.load(spec)
        return self.writers[spec]
