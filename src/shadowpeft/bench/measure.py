"""Timing a method's steps and reading the memory they take."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft.bench.methods import Fitted, precision
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.errors import UserError
from shadowpeft.reporting.devices import synchronise
from shadowpeft.train.arguments import recompute_activations
from shadowpeft.train.attention import sound_attention

LEARNING_RATE = 1e-5
COMPILER = "inductor"


@dataclass(frozen=True)
class Visit:
    """What one turn of a method came to.

    Attributes:
        ms: time of each step.
        peak_gb: most memory in use over the weights of base and method, in 10^9 bytes; `None` on a CPU.
        loss: of the last step; `None` for a prefill.
    """

    ms: list[float]
    peak_gb: float | None
    loss: float | None


class Call:
    """A method's loss and prefill, compiled on demand; kept as long as what was compiled is to be used."""

    def __init__(self, fitted: Fitted, compiled: bool) -> None:
        self.fitted, self.compiled = fitted, compiled

        def wrap(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return torch.compile(call, backend=COMPILER, dynamic=False, fullgraph=True) if compiled else call

        self.loss, self.prefill = wrap(fitted.loss), wrap(fitted.prefill)


def prepare(fitted: Fitted, settings: Bench) -> None:
    """Set a method that was just put on to training or evaluation."""
    fitted.model.train(isinstance(settings, TrainBench))
    if isinstance(settings, TrainBench) and settings.checkpointing:
        recompute_activations(fitted.model)


def train(call: Call, base: PreTrainedModel, ids_BT: Tensor, settings: TrainBench) -> Visit:
    """Time training steps: forward, backward, a step of AdamW on what is trained, gradients dropped."""
    trained = call.fitted.trained()
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True) if trained else None

    def step() -> Tensor:
        with precision(base, settings):
            loss = call.loss(*call.fitted.inputs(ids_BT))
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    with sound_attention():
        visit, loss = _timed(step, base.device, settings, call.compiled)
    if not math.isfinite(loss.item()):
        raise UserError("the loss is not a finite number, so a time would mean nothing")
    return Visit(*visit, loss.item())


def prefill(call: Call, base: PreTrainedModel, ids_BT: Tensor, settings: Bench) -> Visit:
    """Time reading a prompt."""

    def step() -> Tensor:
        with torch.no_grad(), precision(base, settings):
            return call.prefill(ids_BT)

    visit, logits = _timed(step, base.device, settings, call.compiled)
    if not logits.isfinite().all():
        raise UserError("the logits are not finite numbers, so a time would mean nothing")
    return Visit(*visit, None)


def _timed(
    step: Callable[[], Tensor], device: torch.device, settings: Bench, compiled: bool
) -> tuple[tuple[list[float], float | None], Tensor]:
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    for _ in range(settings.warmup):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with _without_compiling(compiled):
        ms, last = _laps(step, settings.repeats, device)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9 if device.type == "cuda" else None
    return (ms, peak), last


@contextmanager
def _without_compiling(compiled: bool) -> Iterator[None]:
    """Let a step that would be compiled once more fail in place of being timed with that."""
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


def _laps(step: Callable[[], Tensor], count: int, device: torch.device) -> tuple[list[float], Tensor]:
    """Time steps in milliseconds and give the last one's result. Between two, a GPU is not waited for, as no training loop does."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            last = step()
            marks.append(time.perf_counter())
        return [1000 * (after - before) for before, after in itertools.pairwise(marks)], last
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    synchronise(device)
    events[0].record()
    for event in events[1:]:
        last = step()
        event.record()
    synchronise(device)
    return [before.elapsed_time(after) for before, after in itertools.pairwise(events)], last
