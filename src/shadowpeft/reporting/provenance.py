"""Where and with what something was measured: versions, commit and device."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import shadowpeft

if TYPE_CHECKING:
    import torch


_LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def versions(*more: str) -> dict[str, str | None]:
    """Name the versions of Python and of the libraries (and `more`) that results may depend on; `None` for one that is not installed."""
    found: dict[str, str | None] = {"shadowpeft": shadowpeft.__version__, "python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


def commit() -> str | None:
    """Name the commit of the package's own checkout, with "+changes" where files of the package differ.

    Where the code runs from a copy without its history, the environment variable SHADOWPEFT_COMMIT may name it; else `None`.
    """
    package = Path(shadowpeft.__file__).parent
    if (
        _git(package, "ls-files", "--error-unmatch", "__init__.py") is None
    ):  # installed, perhaps inside another project's checkout
        return os.environ.get("SHADOWPEFT_COMMIT")
    head = _git(package, "rev-parse", "HEAD")
    return f"{head}+changes" if head and _git(package, "status", "--porcelain", "--", ".") else head


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def where_it_ran(device: "torch.device") -> dict[str, str]:
    """Name the device and the versions, for the card of what a run made."""
    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name(0) if device.type == "cuda" else str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
