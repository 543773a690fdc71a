"""What the measurements share that is not measured: the device, its memory, and why a method has no time."""

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from shadowpeft.errors import UserError
from shadowpeft.reporting.devices import is_out_of_memory


def device_name(device: torch.device) -> str:
    """Name a device as the rows do."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def status_of(error: Exception) -> str:
    """Say in a few words why a method has no more turns."""
    if isinstance(error, ImportError):
        return f"missing: {error.name or error} is not installed"
    if is_out_of_memory(error):
        return "out of memory"
    message = " ".join(str(error).split())[:300]
    if isinstance(error, UserError):
        return f"failed: {message}"
    return f"failed: {type(error).__name__}: {message}"


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def few_objects_to_collect() -> Iterator[None]:
    """Keep what was imported out of the garbage collections between turns, which would look through it."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tidy() -> None:
    """Free the memory that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
