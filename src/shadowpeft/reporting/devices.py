"""Choose a device, wait for it, and recognise an error that says its memory is full."""

import torch

from shadowpeft.errors import ConfigError

# torch has an error class for its CUDA allocator only: libraries below it, and its CPU allocator, say it in
# words.
_NO_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)  # fmt: skip


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the memory of a device, or of the machine, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _NO_MEMORY)


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pick_device(name: str) -> torch.device:
    """Return the device of a name; `auto` stands for the fastest kind this machine has.

    Raises:
        ConfigError: the name is not a device, or this machine has no such device.
    """
    if name == "auto":
        name = _fastest()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"there is no device {name!r} here ({first_line})") from error


def _fastest() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
