"""Runs a recipe as a user does, and writes the rows that it reads."""

import gzip
import io
import json
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

ROOT = Path(__file__).parents[2]


def run(script: str, *words: object) -> str:
    """Run a recipe as its page says and return what it printed.

    It runs in this process: another one would first import torch and transformers, for most of ten seconds.
    A recipe that changes the package has to be undone by the test, or run apart.
    """
    path, printed = ROOT / "recipes" / script, io.StringIO()
    with _as_in_a_process_of_its_own(path, words), redirect_stdout(printed):
        runpy.run_path(str(path), run_name="__main__")
    return printed.getvalue()


@contextmanager
def _as_in_a_process_of_its_own(path: Path, words: tuple[object, ...]) -> Iterator[None]:
    """Give a script its words and the modules of its folder; take back what it may change for all."""
    threads, modules = torch.get_num_threads(), dict(sys.modules)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", [str(path), *map(str, words)])
        patch.setattr(sys, "path", [str(path.parent), *sys.path])
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Another recipe's module of the same name.
        beside = [each.stem for each in path.parent.glob("*.py")]
        for name in beside:
            sys.modules.pop(name, None)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            logging.set_verbosity(verbosity)
            {True: logging.enable_progress_bar, False: logging.disable_progress_bar}[bars]()
            for name in beside:
                sys.modules.pop(name, None)
                if name in modules:
                    sys.modules[name] = modules[name]


def run_apart(script: str, *words: object, timeout: int = 240) -> str:
    """Run a recipe in a process of its own and return what it printed."""
    command = [sys.executable, str(ROOT / "recipes" / script), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
