"""Where and with what something was measured or made: versions, commit and device."""

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


def version_of(library: str) -> str | None:
    """Return the version of an installed library; `None` if it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def versions(*more: str) -> dict[str, str | None]:
    """Return the versions of Python and of the libraries (and `more`) that results may depend on, by name."""
    ours: dict[str, str | None] = {"shadowpeft": shadowpeft.__version__, "python": platform.python_version()}
    return ours | {library: version_of(library) for library in (*_LIBRARIES, *more)}


def frameworks() -> dict[str, str]:
    """Return the versions of torch and transformers as they name themselves, for cards."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def where_it_ran(device: "torch.device") -> dict[str, str]:
    """Return the device and the versions, for the card of what a run made."""
    import torch

    name = torch.cuda.get_device_name(0) if device.type == "cuda" else str(device)
    return {"device": name, "python": platform.python_version(), **frameworks()}


def commit() -> str | None:
    """Return the commit of the package's own checkout, with "+changes" if its files differ from it.

    If the code runs from a copy without its history, the environment variable SHADOWPEFT_COMMIT may name it.
    Without either, return `None`.
    """
    package = Path(shadowpeft.__file__).parent
    # An installed package may lie inside another project's checkout, whose commit says nothing about it.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return os.environ.get("SHADOWPEFT_COMMIT")
    head = _git(package, "rev-parse", "HEAD")
    if head and _git(package, "status", "--porcelain", "--", "."):
        return f"{head}+changes"
    return head


def _git(folder: Path, *words: str) -> str | None:
    """Return what a git command prints; `None` if it fails or there is no git."""
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, encoding="utf-8"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
