"""Running cells: one after another in this process, or in several processes that each live for many cells.

A cell that fails is handed back as a row that says so; the others go on.
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
from shadowpeft.compare.ledger import Row, failed
from shadowpeft.compare.study import Study
from shadowpeft.reporting.devices import is_out_of_memory

RunCell = Callable[[Cell, Study], list[Row]]
Done = Callable[[Cell, list[Row], str], object]  # takes the name of the device, too


def run_cells(
    cells: Sequence[Cell], study: Study, run_cell: RunCell, done: Done, alone: bool = False
) -> None:
    """Run cells and hand each one's rows to `done` as soon as there are any.

    Args:
        cells: what to run, in this order where one process runs them all.
        study: the study.
        run_cell: runs one cell; a function of a module, since other processes have to find it.
        done: is called in this process with the cell, its rows and the name of the device.
        alone: run one cell at a time, whatever the study's `workers`.
    """
    gpus = count_gpus(study)
    width = 1 if alone else min(study.workers * max(gpus, 1), len(cells))
    if width <= 1:
        name = device_name(study)
        for cell in cells:
            done(cell, attempt(cell, study, run_cell), name)
        return
    crowded: list[Cell] = []

    def keep(cell: Cell, rows: list[Row], device: str) -> None:
        if rows[0]["status"] == "out-of-memory":
            crowded.append(cell)
        else:
            done(cell, rows, device)

    pool = _Pool(study, run_cell, [index % gpus if gpus else None for index in range(width)])
    try:
        pool.run(cells, keep)
    finally:
        pool.stop()
    if crowded:  # beside others there was no room; whether there is any is known only of a cell that has the device to itself
        run_cells(crowded, study, run_cell, done, alone=True)


def attempt(cell: Cell, study: Study, run_cell: RunCell) -> list[Row]:
    """Run a cell; out of memory or another failure becomes a row that tells of it."""
    import torch

    try:
        return run_cell(cell, study)
    except Exception as error:  # whatever it is, it is recorded and the study goes on
        if is_out_of_memory(error):
            rows = failed(cell, "out-of-memory", " ".join(str(error).split()))
        else:
            rows = failed(cell, "crashed", _describe(error))
    gc.collect()  # outside the handlers: until these end, the error's frames hold their tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rows


def _describe(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({Path(last.filename).name}:{last.lineno}: {last.line})"


def count_gpus(study: Study) -> int:
    """Count the GPUs that the study may use."""
    import torch

    return 0 if study.device == "cpu" else torch.cuda.device_count()


def device_name(study: Study) -> str:
    """Name the device that this process computes on."""
    import torch

    return "cpu" if study.device == "cpu" or not torch.cuda.is_available() else torch.cuda.get_device_name()


# Several processes


@dataclass
class _Worker:
    """A process, the GPU it sees (`None` for none) and the cell it is at.

    `device` is empty until the process has said that it is ready.
    """

    process: Any
    pipe: Connection
    gpu: int | None
    device: str = ""
    cell: Cell | None = None


@dataclass
class _Pool:
    """Processes that take cells as they get free; one that dies is replaced."""

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
                    with contextlib.suppress(OSError):  # it died meanwhile, of which `_hear` will hear
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
        theirs.close()  # so that the end of the process is the end of the pipe
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
            assert worker.cell is not None, "only a worker with a cell has rows"
            cell, worker.cell = worker.cell, None
            done(cell, message, worker.device)

    def _bury(self, worker: _Worker, done: Done) -> None:
        """Record the cell of a process that died, and put another process in its place."""
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
    return f"was killed by {signal.Signals(-code).name}" + (
        " (perhaps the machine's memory ran out)" if -code == signal.SIGKILL else ""
    )


def _work(pipe: Connection, study: Study, run_cell: RunCell) -> None:
    """Be a worker: say the device's name, then answer each cell with its rows until the pipe ends."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of a terminal; the first one ends the others
    silence()
    try:
        pipe.send(device_name(study))
        while True:
            pipe.send(attempt(pipe.recv(), study, run_cell))
            _tidy()
    except (EOFError, BrokenPipeError):
        return


def _tidy() -> None:
    """Leave the memory of the cell before to the neighbours on the device, and make later garbage collections fast.

    What lives on is code and data, which each collection (the Trainer makes one, too) would look through again for most of a second.
    """
    import torch

    gc.collect()
    gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def silence() -> None:
    """Leave standard error to the study's own progress."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")


@contextlib.contextmanager
def _environment(gpu: int | None, width: int) -> Iterator[None]:
    """Let a process that starts now see one GPU, if it is to have one, and its share of the cores: both are read when torch is imported."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    changes = (
        {}
        if "OMP_NUM_THREADS" in os.environ
        else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // width))}
    )
    if gpu is not None:
        changes["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible else str(gpu)
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
