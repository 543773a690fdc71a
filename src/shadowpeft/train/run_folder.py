"""The output folder of a run that can be interrupted: what may be written to it, and where the run goes on."""

import dataclasses
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.storage import atomic

RUN, CHECKPOINTS, METRICS = "run.yaml", "checkpoints", "metrics.jsonl"


class RunConfig(Protocol):
    """What the settings of a run must have."""

    @property
    def output(self) -> str:
        """The folder."""

    @property
    def resume(self) -> bool | str:
        """Whether to continue, or the checkpoint to continue from."""

    def to_yaml(self) -> str:
        """Write the settings."""


def prepare(config: RunConfig, result: str, free: Collection[str]) -> Path | None:
    """Refuse a folder that is not ours to write to and make it; return the checkpoint to resume from, if any.

    Args:
        config: the run's settings.
        result: name in the folder of what the run makes.
        free: settings that may differ between a run and its continuation; any other would make it another run.

    Raises:
        ConfigError: the folder holds something else or another run, or there is nothing to resume.
        CheckpointError: it cannot be made, or the checkpoint named is not complete.
    """
    output = Path(config.output)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output must be a folder, {output} is a file; choose another")
    is_run = (output / RUN).is_file()
    if not is_run and output.is_dir() and any(output.iterdir()):
        raise ConfigError(
            f"the output folder {output} holds something other than a run (it has no {RUN}); choose another or empty it"
        )
    if is_run and not config.resume and _has_results(output, result):
        raise ConfigError(
            f"the output folder {output} holds a run already; continue it with resume, or choose another"
        )
    start = _checkpoint_to_resume(config, output, is_run, free) if config.resume else None
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"the output folder {output} cannot be made ({error.strerror}); choose another"
        ) from error
    return start


def begin(config: RunConfig, start: Path | None) -> None:
    """Write the settings into the folder; of a run that is continued say where it goes on.

    Args:
        config: the run's settings.
        start: what `prepare` returned.

    Raises:
        CheckpointError: they could not be written.
    """
    atomic.write_together(Path(config.output), {RUN: atomic.text(config.to_yaml())})
    if config.resume:
        print(
            "no checkpoint yet: starting at step 0" if start is None else f"resuming from {start.name}",
            file=sys.stderr,
        )


def _has_results(output: Path, result: str) -> bool:
    """Tell whether a run has come to something that starting it again would overwrite."""
    from shadowpeft.train import checkpoints

    return (output / result).exists() or any(
        checkpoints.is_complete(folder) for folder in (output / CHECKPOINTS).glob("*")
    )


def _checkpoint_to_resume(
    config: RunConfig, output: Path, is_run: bool, free: Collection[str]
) -> Path | None:
    from shadowpeft.train import checkpoints

    if is_run:
        _check_same_run(config, output / RUN, free)
    if isinstance(config.resume, str):
        start = Path(config.resume)
        if not checkpoints.is_complete(start):
            raise CheckpointError(
                f"{start} is not a complete checkpoint; resume true takes the newest complete one"
            )
        return start
    if not is_run:
        raise ConfigError(
            f"there is no run to resume in {output.absolute()}; leave out --resume, or start it where the run was started"
        )
    return checkpoints.latest_checkpoint(output / CHECKPOINTS)


def _check_same_run(config: RunConfig, path: Path, free: Collection[str]) -> None:
    """Refuse to continue a run under settings that would have made it another run."""
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML, so the run cannot be continued: {error}") from error
    now = yaml.safe_load(config.to_yaml())
    if isinstance(before, dict):
        before = _filled(before, config)
    changed = [
        name
        for name in now
        if name not in free and (not isinstance(before, dict) or before.get(name) != now[name])
    ]
    if changed:
        raise ConfigError(
            f"to resume, {', '.join(changed)} must be as in {path}; pass it with --config, or choose another output for a new run"
        )


def _filled(before: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    """Fill a file's settings up by defaults, in groups of settings as well: a run of before there was a setting did what is its default."""
    filled = dict(before)
    for entry in dataclasses.fields(settings):
        group = vars(settings)[entry.name]
        if dataclasses.is_dataclass(group):
            found = before.get(entry.name, {})
            filled[entry.name] = _filled(found, group) if isinstance(found, Mapping) else found
        elif entry.default is not dataclasses.MISSING:
            filled.setdefault(entry.name, entry.default)
    return filled
