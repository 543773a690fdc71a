"""Run cells: one after another in this process, or in several processes that each live for many cells.

A cell that fails is returned as a record that says so; the others go on.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.records import Record, failed
from shadowpeft.compare.study import Study
from shadowpeft.reporting.devices import is_out_of_memory

RunCell = Callable[[Cell, Study], list[Record]]
Done = Callable[[Cell, list[Record], str], object]  # the last argument is the name of the device


def run_cells(
    cells: Sequence[Cell], study: Study, run_cell: RunCell, done: Done, alone: bool = False
) -> None:
    """Run cells and pass each one's records to `done` as soon as it has ended.

    Args:
        cells: what to run; if one process runs them all, in this order.
        study: the study.
        run_cell: runs one cell; a function of a module, since other processes have to import it.
        done: is called in this process with the cell, its records and the name of the device.
        alone: run one cell at a time, for any value of the study's `workers`.
    """
    gpus = count_gpus(study)
    width = min(study.workers * max(gpus, 1), len(cells))
    if alone or width <= 1:
        name = device_name(study)
        for cell in cells:
            done(cell, attempt(cell, study, run_cell), name)
        return
    crowded: list[Cell] = []

    def keep(cell: Cell, records: list[Record], device: str) -> None:
        if records[0]["status"] == "out-of-memory":
            crowded.append(cell)
        else:
            done(cell, records, device)

    pool = _Pool(study, run_cell, _share_out(gpus, width))
    try:
        pool.run(cells, keep)
    finally:
        pool.stop()
    # A cell that found no room beside others may well have room when it has the device to itself.
    if crowded:
        run_cells(crowded, study, run_cell=run_cell, done=done, alone=True)


def _share_out(gpus: int, width: int) -> list[int | None]:
    """Return the GPU of each of so many workers; `None` if there are no GPUs."""
    if not gpus:
        return [None] * width
    return [index % gpus for index in range(width)]


def attempt(cell: Cell, study: Study, run_cell: RunCell) -> list[Record]:
    """Run a cell; if it runs out of memory or fails otherwise, return a record that says so."""
    import torch

    try:
        return run_cell(cell, study)
    except Exception as error:  # any error is recorded, and the study goes on
        if is_out_of_memory(error):
            records = failed(cell, "out-of-memory", " ".join(str(error).split()))
        else:
            records = failed(cell, "crashed", _describe(error))
    # Outside the handler: until it ends, the frames of the error hold their tensors.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return records


def _describe(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({Path(last.filename).name}:{last.lineno}: {last.line})"


def count_gpus(study: Study) -> int:
    """Return how many GPUs the study may use."""
    import torch

    if study.device == "cpu":
        return 0
    return torch.cuda.device_count()


def device_name(study: Study) -> str:
    """Return the name of the device that this process computes on."""
    import torch

    if study.device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return torch.cuda.get_device_name()


@dataclass
class _Worker:
    """A process that runs cells.

    Attributes:
        process: the process.
        pipe: the way to it.
        gpu: the GPU it sees; `None` for none.
        device: the name of its device; empty until the process has said that it is ready.
        cell: the cell it runs now.
    """

    process: Any
    pipe: Connection
    gpu: int | None
    device: str = ""
    cell: Cell | None = None


@dataclass
class _Pool:
    """Processes that each take the next cell when they have finished one; a process that dies is replaced."""

    study: Study
    run_cell: RunCell
    gpus: list[int | None]
    workers: list[_Worker] = field(default_factory=list)

    def run(self, cells: Sequence[Cell], done: Done) -> None:
        """Run the cells in as many processes as there are entries of `gpus`."""
        waiting = list(cells)
        self.workers = [self._start(gpu) for gpu in self.gpus]
        while waiting or any(worker.cell for worker in self.workers):
            heard = wait([worker.pipe for worker in self.workers])
            for worker in [worker for worker in self.workers if worker.pipe in heard]:
                self._hear(worker, done)
            for worker in self.workers:
                if worker.device and worker.cell is None and waiting:
                    worker.cell = waiting.pop(0)
                    with contextlib.suppress(OSError):  # it has died since; `_hear` finds that out
                        worker.pipe.send(worker.cell)

    def stop(self) -> None:
        """End every process, busy or not."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self.workers = []

    def _start(self, gpu: int | None) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self.study, self.run_cell), daemon=True)
        with _environment(gpu, len(self.gpus)):
            process.start()
        theirs.close()  # the process has the only other end now, so that its death ends the pipe
        return _Worker(process, ours, gpu)

    def _hear(self, worker: _Worker, done: Done) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker, done)
            return
        if not worker.device:
            worker.device = message
        else:
            assert worker.cell is not None, "only a worker with a cell has records"
            cell, worker.cell = worker.cell, None
            done(cell, message, worker.device)

    def _bury(self, worker: _Worker, done: Done) -> None:
        """Record the cell of a process that died, and start another process in its place."""
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        end = _how_it_ended(worker.process.exitcode)
        if not worker.device:
            raise RuntimeError(f"a worker process {end} before it could start")
        self.workers.append(self._start(worker.gpu))
        if worker.cell is not None:
            done(worker.cell, failed(worker.cell, "crashed", f"the worker process {end}"), worker.device)


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    if -code == signal.SIGKILL:
        return "was killed by SIGKILL (perhaps the machine's memory ran out)"
    return f"was killed by {signal.Signals(-code).name}"


def _work(pipe: Connection, study: Study, run_cell: RunCell) -> None:
    """Be a worker: send the device's name, then answer each cell with its records until the pipe ends."""
    # Ctrl-C reaches every process of a terminal; the first process ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence()
    try:
        pipe.send(device_name(study))
        while True:
            pipe.send(attempt(pipe.recv(), study, run_cell))
            _tidy()
    except (EOFError, BrokenPipeError):
        return


def _tidy() -> None:
    """Free the memory of the last cell for the neighbours on the device, and speed up later collections.

    What is still alive is code and data. Each collection (the Trainer runs one, too) would search it again
    for most of a second.
    """
    import torch

    gc.collect()
    gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def silence() -> None:
    """Keep standard error for the study's own progress."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")


@contextlib.contextmanager
def _environment(gpu: int | None, width: int) -> Iterator[None]:
    """Let a process that starts now see one GPU, or none, and its share of the cores.

    Both have to be in its environment before it imports torch, which reads them once.
    """
    before = dict(os.environ)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // width)))
    if gpu is not None:
        visible = [name for name in before.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
