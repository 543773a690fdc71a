"""The ways in which a model writes: `generate` as a user calls it, and with a cache that lets it compile.

B rows, T tokens of the prompt, N new tokens.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from shadowpeft.bench.decode.methods import Writer
from shadowpeft.bench.decode.prompts import Prompt
from shadowpeft.errors import UserError
from shadowpeft.generate import DraftReport
from shadowpeft.reporting.devices import synchronise

# The environment's name for the folder in which the compiler keeps what it made.
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass
class Turn:
    """What one turn of a method took.

    Attributes:
        token_ms: milliseconds a token of each text, the first token left out.
        first_ms: milliseconds to the first token of each text.
        call_ms: milliseconds of the whole call; none where there is no such call.
        reports: how well drafting went.
    """

    token_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    call_ms: list[float] = field(default_factory=list)
    reports: list[DraftReport] = field(default_factory=list)


class Way(Protocol):
    """One method in one way."""

    def first(self) -> list[Tensor]:
        """Write each text for the first time, which may take long; return their new tokens, (B, N)."""
        ...

    def turn(self, repeats: int) -> Turn:
        """Time each text so many times."""
        ...


class Generate:
    """`model.generate(ids, do_sample=False, min_new_tokens=N, max_new_tokens=N)`.

    A token takes (t(N) - t(n)) / (N - n), where t(n) is the time of a call that writes n tokens, and n is 1.

    Args:
        writer: the method.
        prompts: the prompts.
    """

    # Tokens of a call whose time is not that of the tokens behind them.
    settling = 1

    def __init__(self, writer: Writer, prompts: Sequence[Prompt]) -> None:
        self.writer, self.prompts = writer, prompts

    def first(self) -> list[Tensor]:
        """Write each text once."""
        return [self._write(prompt.ids_BT, prompt.new_tokens)[0] for prompt in self.prompts]

    def turn(self, repeats: int) -> Turn:
        """Time each text so many times."""
        turn = Turn()
        self._timed(self.prompts[0], 2)  # not counted: it follows another method's turn
        for prompt in [*self.prompts] * repeats:
            first_ms, _ = self._timed(prompt, 1)
            settled_ms = first_ms
            if self.settling > 1:
                settled_ms, _ = self._timed(prompt, self.settling)
            call_ms, report = self._timed(prompt, prompt.new_tokens)
            turn.first_ms.append(first_ms)
            turn.call_ms.append(call_ms)
            turn.token_ms.append((call_ms - settled_ms) / (prompt.new_tokens - self.settling))
            if report is not None:
                turn.reports.append(report)
        return turn

    def _timed(self, prompt: Prompt, tokens: int) -> tuple[float, DraftReport | None]:
        """Return the milliseconds of a call, and how well drafting went."""
        spent, (_, report) = timed(lambda: self._write(prompt.ids_BT, tokens), prompt.ids_BT.device)
        return spent, report

    def _write(self, ids_BT: Tensor, tokens: int, **options: Any) -> tuple[Tensor, DraftReport | None]:
        """Write so many tokens; return them, and how well drafting went."""
        drafts = "draft" in self.writer.options
        out = self.writer.model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            return_dict_in_generate=drafts,
            **self.writer.options,
            **options,
        )
        new_BN = (out.sequences if drafts else out)[:, ids_BT.shape[1] :]
        report = out.draft_report if drafts else None
        if new_BN.shape[1] != tokens:
            raise UserError(f"{tokens} tokens were asked for and {new_BN.shape[1]} were written")
        return new_BN, report


class Compiled(Generate):
    """`generate(..., cache_implementation="static")`, which transformers compiles on a GPU.

    The first steps of a call record their CUDA graphs anew, for its new cache, so n is more than 1.
    """

    settling = 8

    def __init__(self, writer: Writer, prompts: Sequence[Prompt]) -> None:
        super().__init__(writer, prompts)
        self._first_ms: float | None = None
        # What transformers remembers of earlier prompts: it makes no later cache shorter.
        for remembered in ("_previous_max_cache_length", "_compiled_call"):
            vars(writer.stock).pop(remembered, None)

    def compile_seconds(self, turn: Turn) -> float | None:
        """Return the seconds of the first call beyond those of a later one.

        `None` if it found code that was compiled for an earlier method, as that for the base fits LoRA that
        is merged.
        """
        if self._first_ms is None:
            return None
        return (self._first_ms - turn.call_ms[0]) / 1000

    def first(self) -> list[Tensor]:
        """Compile for the first text, which is the longest, and write each once more.

        Raises:
            UserError: transformers did not compile.
        """
        longest = self.prompts[0]
        # What else a process does once: kernels of the prompt, which is not compiled, and the compiler's own.
        Generate._write(self, longest.ids_BT, 2)
        _wake_compiler(longest.ids_BT.device)
        graphs = _graphs()
        with _empty_cache():
            # Unlike later calls, this one may compile.
            first_ms, _ = super()._timed(longest, longest.new_tokens)
        if _graphs() > graphs:
            self._first_ms = first_ms
        if "_compiled_call" not in vars(self.writer.stock):
            raise UserError("transformers did not compile this model")
        return super().first()

    def _timed(self, prompt: Prompt, tokens: int) -> tuple[float, DraftReport | None]:
        """Time a call, which fails if it would be compiled again: its time would be the compiler's."""
        with torch.compiler.set_stance("fail_on_recompile"):
            return super()._timed(prompt, tokens)

    def _write(self, ids_BT: Tensor, tokens: int, **options: Any) -> tuple[Tensor, DraftReport | None]:
        return super()._write(ids_BT, tokens, cache_implementation="static", **options)


def _graphs() -> int:
    """Return how many graphs were compiled in this process."""
    return counters["stats"]["unique_graphs"]


@functools.cache
def _wake_compiler(device: torch.device) -> None:
    """Let the compiler import and start what it needs, which the first method would pay for."""
    torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Let the compiler begin with an empty cache, unless the environment names one.

    Otherwise a method would find the kernels of those that were compiled before it.
    """
    if _CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[_CACHE] = folder
        try:
            yield
        finally:
            del os.environ[_CACHE]


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the milliseconds of a call and what it returns."""
    synchronise(device)
    began = time.perf_counter()
    result = call()
    synchronise(device)
    return 1000 * (time.perf_counter() - began), result
