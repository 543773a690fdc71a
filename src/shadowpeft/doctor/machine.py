"""What this machine has: versions, devices, extras and the model families that are supported."""

import platform
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement

import shadowpeft
from shadowpeft import arch
from shadowpeft.reporting.provenance import version_of

_LIBRARIES = (
    "torch",
    "transformers",
    "safetensors",
    "accelerate",
    "datasets",
    "peft",
    "triton",
    "jsonargparse",
)


def examine() -> dict[str, Any]:
    """Collect the facts as plain values.

    Returns:
        `shadowpeft`, `python` and `platform`; `versions` by library, `None` where one is not installed;
        `devices`; `extras`, each with what it lacks; `families`, the supported ones.
    """
    return {
        "shadowpeft": shadowpeft.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: version_of(name) for name in _LIBRARIES},
        "devices": _devices(),
        "extras": {extra: _missing(extra) for extra in _extras()},
        "families": [family.name for family in arch.FAMILIES.values()],
    }


def _devices() -> list[dict[str, Any]]:
    processor = platform.processor() or platform.machine()
    devices: list[dict[str, Any]] = [{"device": "cpu", "name": processor, "threads": torch.get_num_threads()}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append(
            {"device": f"cuda:{index}", "name": facts.name, "memory_gib": _gib(facts.total_memory)}
        )
    if torch.backends.mps.is_available():
        memory = _gib(torch.mps.recommended_max_memory())
        devices.append({"device": "mps", "name": "Apple GPU", "memory_gib": memory})
    return devices


def _gib(size: int) -> float:
    return round(size / 2**30, 1)


def _extras() -> list[str]:
    try:
        return metadata.metadata("shadowpeft").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        # The package runs from a source tree that is not installed.
        return []


def _missing(extra: str) -> list[str]:
    """List what an extra asks for that is not installed, or not in the version it asks for."""
    missing = []
    for line in metadata.requires("shadowpeft") or []:
        wanted = Requirement(line)
        if not _belongs(wanted, extra):
            continue
        # An extra may ask for other extras of this package.
        if wanted.name == "shadowpeft":
            missing += [name for other in sorted(wanted.extras) for name in _missing(other)]
            continue
        version = version_of(wanted.name)
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            missing.append(f"{wanted.name}{wanted.specifier}")
    return list(dict.fromkeys(missing))


def _belongs(wanted: Requirement, extra: str) -> bool:
    """Return whether a requirement is the extra's own: one without it holds for every installation."""
    marker = wanted.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
