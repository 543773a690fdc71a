"""The thread that runs a model: requests wait in a queue, and every token of their answers passes here."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, StoppingCriteria

from shadowpeft.generate.batch import Batch, Reader, Row
from shadowpeft.generate.choose import Chosen, choose
from shadowpeft.serve.answers import joined
from shadowpeft.serve.backend import Piece
from shadowpeft.serve.errors import RequestError, internal, where_of
from shadowpeft.serve.writing import Writing

log = logging.getLogger(__name__)
# Tokens of prompts, with their padding, that one pass reads: answers that are written wait for it.
_MOST_READ = 4096

Item = Piece | RequestError


@dataclass(eq=False, kw_only=True)
class Job(Row):
    """A text that a model writes for somebody.

    Attributes:
        writing: makes pieces of its tokens.
        items: where they go; read in the event loop.
        streams: its pieces are wanted one by one; else they come as one at the end, since each wakes the
            event loop, which takes the interpreter from the model.
        cancelled: nobody wants it any more; looked at with every token.
    """

    writing: Writing
    items: asyncio.Queue[Item] = field(default_factory=asyncio.Queue)
    streams: bool = True
    cancelled: bool = False
    _kept: list[Piece] = field(default_factory=list)

    def take(self, chosen: Chosen) -> Piece | None:
        """Take in the next token; return what is sure now, and be finished where the text ends."""
        if self.cancelled:
            self.finished = True
            return None
        piece = self.writing.add(chosen)
        self.finished = self.writing.finish is not None
        if self.streams or piece is None:
            return piece
        self._kept.append(piece)
        return joined(self._kept) if self.finished else None


Emit = Callable[[Sequence[tuple[Job, Item]]], None]


class Engine(Protocol):
    """How a model is run for the jobs that wait."""

    def jobs(self) -> Sequence[Job]:
        """Return the jobs that are being written."""
        ...

    def turn(self, waiting: deque[Job], emit: Emit) -> None:
        """Take jobs from the queue as there is room, and write on those that are being written."""
        ...

    def drop(self) -> None:
        """Forget the jobs that are being written."""
        ...


class Together:
    """Writes many texts at once; each step gives every one of them a token.

    Args:
        reader: the model.
        device: where it is.
        rows: the most texts at once.
    """

    def __init__(self, reader: Reader, device: torch.device, rows: int) -> None:
        self._reader, self._device, self._most = reader, device, rows
        self._batch = Batch(reader, device)
        self._new: list[Job] = []

    def jobs(self) -> Sequence[Job]:
        """Return the jobs that are being written."""
        rows: list[Any] = [*self._batch.rows, *self._new]
        return list(dict.fromkeys(rows))

    def turn(self, waiting: deque[Job], emit: Emit) -> None:
        """Read the prompts of new jobs, then let all grow by a token."""
        self._new = self._admitted(waiting)
        if self._new:
            self._give(self._new, self._batch.add(self._new), emit)
            self._new = []
        if self._batch.rows:
            self._give(list(self._batch.rows), self._batch.step(), emit)

    def drop(self) -> None:
        """Forget the jobs that are being written."""
        self._batch, self._new = Batch(self._reader, self._device), []

    def _admitted(self, waiting: deque[Job]) -> list[Job]:
        """Take the first jobs off the queue, as many as there are rows and one pass reads."""
        new: list[Job] = []
        longest = 0
        while waiting and len(self._batch.rows) + len(new) < self._most:
            if waiting[0].cancelled:
                waiting.popleft()
                continue
            longest = max(longest, len(waiting[0].prompt))
            if new and longest * (len(new) + 1) > _MOST_READ:
                break
            new.append(waiting.popleft())
        return new

    def _give(self, rows: Sequence[Any], chosen: Sequence[Chosen], emit: Emit) -> None:
        pieces = [(job, job.take(each)) for job, each in zip(rows, chosen, strict=True)]
        try:
            self._batch.drop_finished()
        finally:
            # Last: the event loop wakes, and would wait for the interpreter as long as this thread has work.
            emit([(job, piece) for job, piece in pieces if piece is not None])


class Alone:
    """Writes one text at a time by `generate`, which knows every model, and the shadow's drafts.

    Args:
        model: the model.
        settings: arguments of its `generate`, such as the adapter and the drafts.
    """

    def __init__(self, model: PreTrainedModel, settings: dict[str, Any]) -> None:
        self._model, self._settings = model, settings
        self._job: list[Job] = []

    def jobs(self) -> Sequence[Job]:
        """Return the job that is being written."""
        return self._job

    def turn(self, waiting: deque[Job], emit: Emit) -> None:
        """Write one job to its end."""
        job = waiting.popleft()
        self._job = [job]
        chooser = _Chooser(job)
        ids_1T = torch.tensor([list(job.prompt)], device=self._model.device)
        self._model.generate(  # type: ignore[operator]
            ids_1T,
            attention_mask=torch.ones_like(ids_1T),
            logits_processor=[chooser],
            stopping_criteria=[_Listener(job, chooser, emit)],
            max_new_tokens=job.writing.ends.most,
            eos_token_id=sorted(job.writing.ends.ids) or None,
            do_sample=False,
            num_beams=1,
            # What a model's folder sets for it would act here, and not on a batch.
            repetition_penalty=1.0,
            **self._settings,
        )
        self._job = []

    def drop(self) -> None:
        """Forget the job that is being written."""
        self._job = []


class _Chooser(LogitsProcessor):
    """Chooses a job's token from its logits, and leaves nothing else to choose.

    So a draft is taken where it is the token that would have been chosen without drafts, also in sampling,
    and a seed gives the same text with drafts and without.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.chosen: Chosen | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        (self.chosen,) = choose(scores, [self._job.choice])
        alone_1V = torch.full_like(scores, -torch.inf)
        alone_1V[0, self.chosen.token] = 0
        return alone_1V


class _Listener(StoppingCriteria):
    """Hands on each token, and stops where the text ends or nobody listens any more."""

    def __init__(self, job: Job, chooser: _Chooser, emit: Emit) -> None:
        self._job, self._chooser, self._emit = job, chooser, emit

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Tensor:
        assert self._chooser.chosen is not None
        piece = self._job.take(self._chooser.chosen)
        if piece is not None:
            self._emit([(self._job, piece)])
        return torch.tensor([self._job.finished], device=input_ids.device)


class Worker:
    """One thread, in which one model answers.

    Args:
        name: of the model, for the log.
        engine: how it is run.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        self._name, self._engine = name, engine
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)

    def start(self) -> None:
        """Start the thread; answers come in the event loop of the caller."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Stop a job at its next token, or before its first."""
        job.cancelled = True

    async def close(self) -> None:
        """Stop at the next token of what is being written, and wait for the thread."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, *self._engine.jobs()):
                job.cancelled = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)

    @torch.inference_mode()
    def _run(self) -> None:
        while self._wait():
            try:
                self._engine.turn(self._waiting, self._emit)
            except Exception as error:
                self._fail(error)

    def _wait(self) -> bool:
        """Wait for work; return false once there will be none."""
        with self._changed:
            while not self._closed:
                while self._waiting and self._waiting[0].cancelled:
                    self._waiting.popleft()
                if self._waiting or self._engine.jobs():
                    return True
                self._changed.wait()
        return False

    def _fail(self, error: Exception) -> None:
        """Answer the jobs that are being written by an error; the next ones start afresh."""
        # Not the message of the error, in which there may be words of a prompt.
        log.error("model %s failed: %s", self._name, where_of(error))
        jobs = self._engine.jobs()
        self._engine.drop()
        self._emit([(job, internal()) for job in jobs])

    def _emit(self, items: Sequence[tuple[Job, Item]]) -> None:
        assert self._loop is not None
        # One call for all: each wakes the event loop. It is closed where a test or a signal ended it first.
        if items and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, items)


def _deliver(items: Sequence[tuple[Job, Item]]) -> None:
    for job, item in items:
        job.items.put_nowait(item)
