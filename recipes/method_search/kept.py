"""Keep on disk what many processes of a search would make again, and what classifiers answer."""

import functools
import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shadowpeft.compare import measure, run_cell


def keep_encoded(folder: Path) -> None:
    """Read encoded rows from files of a folder from now on, and write those that have none yet."""
    folder.mkdir(parents=True, exist_ok=True)
    run_cell.examples_of = _kept(folder, run_cell.examples_of)
    run_cell.questions_of = _kept(folder, run_cell.questions_of)


def _kept(folder: Path, make: Callable[..., Any]) -> Any:
    """Return `make` with its results kept in files; where the data lies is no part of a file's name."""

    def from_file(model: str, task: Any, split: str, *, data_dir: str | None, **how: Any) -> Any:
        key = json.dumps([make.__name__, model, task.name, split, how], sort_keys=True)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.pickle"
        if not path.exists():
            # Written under another name first: a neighbour must not read half a file.
            new = path.with_suffix(f".{os.getpid()}")
            new.write_bytes(pickle.dumps(make(model, task, split, data_dir=data_dir, **how)))
            new.rename(path)
        return pickle.loads(path.read_bytes())

    return functools.lru_cache(maxsize=16)(from_file)


@contextmanager
def kept_answers(path: Path | None) -> Iterator[None]:
    """Write what classifiers answer within the context: log-probabilities `log0`, `log1`, ..., and `target`.

    `log0` is the attached model's and `log1` the detached one's. Without a path nothing is written.
    """
    plain = measure.answer
    logs: list[Any] = []
    targets: list[Any] = []

    def answer(model: Any, tokenizer: Any, task: Any, items: Any, **settings: Any) -> Any:
        given = plain(model, tokenizer, task, items, **settings)
        # `most` is set where answers are only timed.
        if given.probabilities is not None and "most" not in settings:
            logs.append(np.log(np.maximum(np.array(given.probabilities), 1e-12)).astype(np.float16))
            targets[:] = [item.target for item in items]
        return given

    measure.answer = answer
    try:
        yield
    finally:
        measure.answer = plain
    if path is not None and logs:
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {f"log{i}": log_NC for i, log_NC in enumerate(logs)}
        np.savez_compressed(path, target=np.array(targets, np.int16), **named)
