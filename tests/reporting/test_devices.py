"""Devices: which one a name stands for, and which errors say that its memory is full."""

import pytest
import torch

from shadowpeft.errors import ConfigError
from shadowpeft.reporting.devices import is_out_of_memory, pick_device, synchronise


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried 9 bytes"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:50],
)
def test_full_memory_is_recognised(error):
    """Catches a study that ends with a method that is too large in place of a line that says so."""
    assert is_out_of_memory(error)


def test_a_real_refusal_of_this_machine_is_recognised():
    """Catches words that a new version of torch has changed."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50)
    assert is_out_of_memory(refused.value)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: invalid argument"), ValueError("out of range")])
def test_other_errors_are_not_full_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_fastest_kind_there_is(cuda, mps, wanted, monkeypatch):
    """Catches a GPU that is left idle."""
    asked = []

    def empty(size, *, device):
        asked.append(device)
        return torch.zeros(size)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", empty)
    pick_device("auto")
    assert asked == [wanted]


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name):
    with pytest.raises(ConfigError, match=rf"^there is no device '{name}' here \([^\n]+\)$"):
        pick_device(name)


def test_only_a_gpu_is_waited_for(monkeypatch):
    """Catches times that end before the work does, and a wait that needs CUDA where there is none."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    for name in ("cpu", "cuda"):
        synchronise(torch.device(name))
    assert waited == [torch.device("cuda")]
