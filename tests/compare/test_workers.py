"""Cells in processes of their own: those that die, lack memory, or share GPUs."""

import os
from dataclasses import replace

import pytest
import torch
from helpers.noted_cells import (
    called,
    crowded,
    deadly,
    go,
    slow,
    written,
)

from shadowpeft.compare import choice, schedule, workers
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_dies_is_replaced(small):
    """Catches a study that waits for ever for a process that is gone, or loses the cell it was at."""
    done: list[tuple[Cell, list[dict], str]] = []
    settings = replace(small, workers=2, tasks="clinc150")
    cells = schedule.search_cells(settings, []) + schedule.cost_cells(settings, choice.choices(settings, []))
    assert len(cells) == 9
    workers.run_cells(cells, settings, deadly, lambda *result: done.append(result))
    assert sorted(cell.key for cell, _, _ in done) == sorted(cell.key for cell in cells)
    dead = [rows[0] for _, rows, _ in done if rows[0]["status"] != "ok"]
    assert sorted(row["method"] for row in dead) == ["lora", "shadow"], (
        "as many as there are workers: without others nobody is left"
    )
    said = ("crashed", "the worker process was killed by SIGKILL (perhaps the machine's memory ran out)")
    assert {(row["status"], row["error"]) for row in dead} == {said}
    assert {name for _, _, name in done} == {"cpu"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_out_of_memory_beside_others_is_run_again_alone(small):
    """Catches a cell that is given up, or recorded twice, since its neighbours held the memory."""
    settings = replace(small, workers=2, tasks="clinc150", methods="base,lora,shadow", trials=1)
    done: list[tuple[Cell, list[dict]]] = []
    cells = schedule.search_cells(settings, [])
    workers.run_cells(cells, settings, crowded, lambda cell, rows, device: done.append((cell, rows)))
    outcomes = sorted((cell.method, rows[0]["status"]) for cell, rows in done)
    assert outcomes == [("base", "ok"), ("lora", "out-of-memory"), ("shadow", "ok")]
    assert sorted(called(settings)) == sorted(
        [cell.key for cell in cells] + [cell.key for cell in cells if cell.method != "base"]
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 9 bytes."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you "
            "tried to allocate 9 bytes."
        ),
        MemoryError(),
    ],
    ids=["torch", "cublas", "cuda", "cpu", "cpu of Windows", "python"],
)
def test_out_of_memory_in_all_its_words(small, error):
    """Catches a library's own words for it, recorded as a crash and not run again alone."""

    def full(cell: Cell, settings: Study) -> list[dict]:
        raise error

    cell = schedule.search_cells(small, [])[0]
    assert workers.attempt(cell, small, full)[0]["status"] == "out-of-memory"


@pytest.mark.slow
def test_workers_share_the_cells_and_costs_run_alone(small):
    """Catches a pool that uses one process, and times that are taken while other cells compute."""
    settings = replace(small, workers=2, methods="lora,shadow", tasks="clinc150", seeds=1)
    go(settings, slow)
    processes = {
        stage: {row["config"]["pid"] for row in written(settings) if row["stage"] == stage}
        for stage in ("search", "cost")
    }
    assert len(processes["search"]) == 2
    assert processes["cost"] == {os.getpid()}


def test_a_worker_sees_one_gpu(monkeypatch):
    """Catches two workers on one GPU and none on the other, and a choice of GPUs that is lost."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers._environment(1, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
        assert os.environ["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2)), (
            "the cores are shared, too"
        )
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with workers._environment(1, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
