"""The output folder of a run that can be interrupted: what may be written to it, and where the run continues.

A run of training and one of pretraining differ in what they make and in what may change when they continue.
"""

import dataclasses
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import yaml

from shadowpeft.checked_fields import nearest
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.storage import atomic

# Settings of a run that are settings of their own, by name.
_GROUPS = ("shadow", "draft")
RUN, CHECKPOINTS, METRICS = "run.yaml", "checkpoints", "metrics.jsonl"
# What may differ between any run and its continuation; most other settings would make it another run.
FREE_ON_RESUME = (
    "resume",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "device",
    "draft_vocabulary",
)


class RunConfig(Protocol):
    """What the settings of a run have: a dataclass with these fields and more."""

    # As the standard library's own stubs mark a dataclass.
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def output(self) -> str:
        """The folder."""

    @property
    def resume(self) -> bool | str:
        """True to continue from the newest checkpoint, or the checkpoint to continue from."""

    def to_yaml(self) -> str:
        """Write the settings."""


def prepare(config: RunConfig, result: str, free: Collection[str]) -> Path | None:
    """Refuse a folder that is not ours to write to and make it; return the checkpoint to resume from, if any.

    Args:
        config: the run's settings.
        result: name in the folder of what the run makes.
        free: settings that may differ between a run and its continuation; any other would make it another
            run.

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
            f"the output folder {output} holds something other than a run (it has no {RUN}); "
            "choose another or empty it"
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
    """Write the settings into the folder; if the run is continued, say from where.

    Args:
        config: the run's settings.
        start: what `prepare` returned.

    Raises:
        CheckpointError: they could not be written.
    """
    atomic.write_together(Path(config.output), {RUN: atomic.text(config.to_yaml())})
    if not config.resume:
        return
    said = "no checkpoint yet: starting at step 0"
    if start is not None:
        said = f"resuming from {start.name}"
    print(said, file=sys.stderr)


def _has_results(output: Path, result: str) -> bool:
    """Return whether the folder holds what starting the run again would overwrite."""
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
            f"there is no run to resume in {output.absolute()}; "
            "leave out --resume, or start it where the run was started"
        )
    return checkpoints.latest_checkpoint(output / CHECKPOINTS)


def _check_same_run(config: RunConfig, path: Path, free: Collection[str]) -> None:
    """Refuse to continue a run under settings that would have made it another run."""
    before, now = read_settings(path, "run"), yaml.safe_load(config.to_yaml())
    refuse_unknown_settings(path, before, now)
    changed = changed_settings(_filled(before, _defaults(config)), now, free)
    if changed:
        raise ConfigError(
            f"to resume, {', '.join(changed)} must be as in {path}; "
            "pass it with --config, or choose another output for a new run"
        )


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """Read the settings that a run or a study was begun with.

    Args:
        path: the file, YAML.
        what: what it is of, as the message says it: `run`.

    Returns:
        the settings by name; none where the file holds no mapping.

    Raises:
        ConfigError: the file is not valid YAML.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML, so the {what} cannot be resumed: {error}") from error
    return settings if isinstance(settings, dict) else {}


def refuse_unknown_settings(
    path: Path, before: Mapping[str, Any], now: Mapping[str, Any], within: str = ""
) -> None:
    """Refuse a file with a setting that this version does not have: it would be ignored from here on.

    Args:
        path: the file.
        before: the settings in it.
        now: every setting there is, those of a group in a mapping of its own.
        within: the group, such as `shadow.`.

    Raises:
        ConfigError: names the first such setting, and the known one nearest to it.
    """
    for name, value in before.items():
        if name not in now:
            raise ConfigError(
                f"{path} has the unknown setting {within}{name}{nearest(name, now)}; remove it, or go on "
                "with the version that wrote it"
            )
        group = now[name]
        # An open mapping, such as the overrides of a study's methods, is checked where it is read.
        if within == "" and name in _GROUPS and isinstance(value, Mapping) and isinstance(group, Mapping):
            refuse_unknown_settings(path, value, group, within=f"{name}.")


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Name the settings of `now` that differ from those of `before`, except for those that are free to."""
    return [name for name in now if name not in free and before.get(name) != now[name]]


def _filled(before: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Add the defaults of settings that a file lacks, also within its groups.

    A run that began before a setting existed did what is its default now.
    """
    filled = {**defaults, **before}
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(filled[name], Mapping):
            filled[name] = _filled(filled[name], default)
    return filled


def _defaults(config: RunConfig) -> dict[str, Any]:
    """Return the default of every setting that has one; a group of settings is a dictionary of its own."""
    defaults: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        default = entry.default
        if entry.default_factory is not dataclasses.MISSING:
            default = entry.default_factory()
        if dataclasses.is_dataclass(default):
            default = dataclasses.asdict(default)  # type: ignore[arg-type]
        if default is not dataclasses.MISSING:
            defaults[entry.name] = default
    return defaults
