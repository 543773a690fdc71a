"""Time a method's steps, and read the memory that they take."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft.bench.methods import AppliedMethod, precision
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.errors import UserError
from shadowpeft.reporting.devices import synchronise
from shadowpeft.train.arguments import recompute_activations
from shadowpeft.train.attention import sound_attention

LEARNING_RATE = 1e-5
COMPILER = "inductor"


@dataclass(frozen=True)
class Turn:
    """One turn of a method.

    Attributes:
        ms: time of each step in milliseconds.
        peak_gb: most memory in use above the weights of base and method, in 10^9 bytes; `None` on a CPU.
        loss: loss of the last step; `None` for a prefill.
    """

    ms: list[float]
    peak_gb: float | None
    loss: float | None


class Runner:
    """A method's loss and prefill, compiled if that is wanted.

    torch drops what was compiled together with the functions, so a runner is kept as long as it is used.

    Args:
        applied: the method.
        compiled: whether to compile the two.
    """

    def __init__(self, applied: AppliedMethod, compiled: bool) -> None:
        self.applied, self.compiled = applied, compiled
        self.loss, self.prefill = applied.loss, applied.prefill
        if compiled:
            self.loss, self.prefill = _compiled(applied.loss), _compiled(applied.prefill)


def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, backend=COMPILER, dynamic=False, fullgraph=True)


def prepare(applied: AppliedMethod, settings: Bench) -> None:
    """Set a method that was just put on the base to training or evaluation."""
    applied.model.train(isinstance(settings, TrainBench))
    if isinstance(settings, TrainBench) and settings.checkpointing:
        recompute_activations(applied.model)


def train(runner: Runner, base: PreTrainedModel, ids_BT: Tensor, settings: TrainBench) -> Turn:
    """Time training steps: forward, backward, a step of AdamW on what is trained, and dropping the gradients.

    Raises:
        UserError: the loss is not a finite number.
    """
    trained = runner.applied.trained()
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True) if trained else None

    def step() -> Tensor:
        with precision(base, runner.applied):
            loss = runner.loss(*runner.applied.inputs(ids_BT))
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    with sound_attention():
        turn, loss = _timed(step, base.device, settings, compiled=runner.compiled)
    if not math.isfinite(loss.item()):
        raise UserError("the loss is not a finite number, so a time would mean nothing")
    return replace(turn, loss=loss.item())


def prefill(runner: Runner, base: PreTrainedModel, ids_BT: Tensor, settings: Bench) -> Turn:
    """Time the reading of a prompt.

    Raises:
        UserError: the logits are not finite numbers.
    """

    def step() -> Tensor:
        with torch.no_grad(), precision(base, runner.applied):
            return runner.prefill(ids_BT)

    turn, logits = _timed(step, base.device, settings, compiled=runner.compiled)
    if not logits.isfinite().all():
        raise UserError("the logits are not finite numbers, so a time would mean nothing")
    return turn


def _timed(
    step: Callable[[], Tensor], device: torch.device, settings: Bench, compiled: bool
) -> tuple[Turn, Tensor]:
    """Time steps after the warm-up; return the turn, without a loss, and the result of the last step."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    for _ in range(settings.warmup):
        step()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with _without_compiling(compiled):
        ms, last = _step_times(step, settings.repeats, device)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9 if on_gpu else None
    return Turn(ms, peak, None), last


@contextmanager
def _without_compiling(compiled: bool) -> Iterator[None]:
    """Make a step fail if it would be compiled again, since its time would be the compiler's."""
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("fail_on_recompile"):
        yield


def _step_times(step: Callable[[], Tensor], count: int, device: torch.device) -> tuple[list[float], Tensor]:
    """Return the time of each step in milliseconds, and the result of the last one."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            last = step()
            marks.append(time.perf_counter())
        return [1000 * (after - before) for before, after in itertools.pairwise(marks)], last
    # Events, since waiting for the GPU between steps would add a gap that no training loop has.
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    synchronise(device)
    events[0].record()
    for event in events[1:]:
        last = step()
        event.record()
    synchronise(device)
    return [before.elapsed_time(after) for before, after in itertools.pairwise(events)], last
