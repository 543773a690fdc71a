"""Why a method has no time is said in a few words."""

import gc

import torch
from helpers.benches import CPU

from shadowpeft.bench.machine import device_name, few_objects_to_collect, on, status_of, tidy
from shadowpeft.errors import UserError


def test_status():
    """Catches a message that fills the table, and a full memory that looks like a fault."""
    assert status_of(ModuleNotFoundError("x", name="peft")) == "missing: peft is not installed"
    assert status_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")) == "out of memory"
    assert status_of(UserError("too\n  long")) == "failed: too long"
    assert status_of(ValueError("x" * 1000)) == "failed: ValueError: " + "x" * 300


def test_objects_are_collected_again_afterwards():
    """Catches a bench after which the process keeps its garbage."""
    with few_objects_to_collect():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_a_cpu_needs_nothing():
    assert device_name(CPU) == f"cpu, {torch.get_num_threads()} threads"
    with on(CPU):
        tidy()
