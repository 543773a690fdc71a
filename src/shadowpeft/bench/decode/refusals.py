"""What cannot be measured here is refused before any weights are built."""

import torch

from shadowpeft import arch
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.bench.decode.subject import Subject, subjects_of
from shadowpeft.bench.methods import refuse_impl
from shadowpeft.errors import ConfigError

NEED_A_GPU = {
    "graph": "the way graph needs an NVIDIA GPU",
    "compiled": "the way compiled needs a GPU, since transformers compiles generation there alone",
}


def refuse(settings: DecodeBench, device: torch.device) -> dict[str, str]:
    """Refuse what cannot be measured before any weights are built.

    Returns:
        The ways and implementations that were not asked for by name and cannot run here, with the reason.

    Raises:
        ConfigError: a prompt beyond the context, or a device, way or implementation that cannot be used.
    """
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            f"device must be cpu or cuda, {device.type} cannot be timed yet; choose --device cpu"
        )
    unable = {way: why for way, why in NEED_A_GPU.items() if device.type != "cuda"}
    asked = [way for way in settings.way_names() if way in unable]
    if asked and settings.ways is not None:
        raise ConfigError(f"{unable[asked[0]]}, and the device is {device.type}; choose ways=generate")
    impls = {spec.impl for spec in settings.specs() if spec.impl is not None}
    for subject in subjects_of(settings):
        config = subject.config()
        _refuse_length(settings, subject, arch.context_of(config))
        for impl in sorted(impls):
            try:
                refuse_impl(impl, config, settings.variant, settings.weights_dtype(device), device)
            except ConfigError as error:
                if settings.methods is not None:
                    raise
                unable[impl] = str(error)
    return unable


def _refuse_length(settings: DecodeBench, subject: Subject, limit: int | None) -> None:
    """Refuse random prompts that leave no room; those of a file are looked at when they are read."""
    longest = max(settings.contexts(subject.shape)) + settings.new_tokens
    if settings.data is None and limit is not None and longest > limit:
        raise ConfigError(
            f"context and new_tokens must together be at most {limit:,}, the context of {subject.name}, "
            f"got {longest:,}"
        )
