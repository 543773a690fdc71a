"""How torch's threads wait for each other, on a machine that has other work too."""

import os

# How GNU's OpenMP (torch on Linux) and LLVM's and Intel's (elsewhere) are told not to spin for long. To fall
# asleep at once costs a tenth more on a quiet machine (docs/guides/save-time-and-memory.md).
_ASLEEP = {"GOMP_SPINCOUNT": "300", "KMP_BLOCKTIME": "0"}


def sleep_while_waiting() -> None:
    """Let a thread that waits for another sleep soon; it would spin, and keep the other one from its core.

    OpenMP reads these variables when torch is imported, so this must come before. What the user has set of
    them, or by `OMP_WAIT_POLICY`, stands.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return
    for name, value in _ASLEEP.items():
        os.environ.setdefault(name, value)
