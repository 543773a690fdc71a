"""Devices: choosing one, waiting for it, and telling when its memory is full."""

import torch

from shadowpeft.errors import ConfigError

# What libraries below torch's allocator say, and its allocator of a CPU, which has no error of its own.
_NO_MEMORY = (
    "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
)  # fmt: skip


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that the memory of a device, or of the machine, ran out."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in _NO_MEMORY
    )


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pick_device(name: str) -> torch.device:
    """Turn `auto` into the best device there is, and refuse one there is not.

    Raises:
        ConfigError: the name is not a device, or not one of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"there is no device {name!r} here ({str(error).partition(chr(10))[0]})") from error
