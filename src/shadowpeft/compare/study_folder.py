"""The folder of a study: which files it holds, and whether a study may begin or go on in it."""

from pathlib import Path

import yaml

from shadowpeft.compare.records import has_read_test, read
from shadowpeft.compare.study import Study, in_yaml
from shadowpeft.errors import ConfigError
from shadowpeft.train.run_folder import read_settings, refuse_unknown_settings

STUDY = "study.yaml"
# Settings that may change on a resume; any other change would make it another study.
_FREE_ON_RESUME = ("output", "device", "workers", "eval_batch_size")
# Values that hold for a file from before these settings existed.
_BEFORE_THE_SETTING = {"extensions": 0, "finalists": 1, "test_skip": 0, "tie_standard_errors": 0}


def records_path(study: Study) -> Path:
    """Return the file of the study's records."""
    return Path(study.output) / f"compare-{study.name}.jsonl"


def has_records(folder: Path) -> bool:
    """Return whether the folder holds a record of any study."""
    return any(path.stat().st_size for path in folder.glob("compare-*.jsonl"))


def check_folder(study: Study) -> None:
    """Refuse a folder in which the study cannot begin or go on.

    Raises:
        ConfigError: the folder holds another study, this one under other settings, something other than a
            study, or a study file that a user wrote; the message says what to do.
    """
    folder = Path(study.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output must be a folder, {folder} is a file; choose another")
    if not (folder / STUDY).exists():
        _refuse_other_files(folder)
    elif has_records(folder):
        _refuse_other_settings(study)
    else:  # it began, and stopped before anything was measured
        _refuse_to_overwrite(folder / STUDY)


def _refuse_other_files(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(
            f"the output folder {folder} holds something other than a study (it has no {STUDY}); "
            "choose another or empty it"
        )


def _refuse_other_settings(study: Study) -> None:
    """Refuse to go on with a study under other settings than it began with."""
    folder = Path(study.output)
    before = {**_BEFORE_THE_SETTING, **read_settings(folder / STUDY, "study")}
    now = yaml.safe_load(study.to_yaml())
    refuse_unknown_settings(folder / STUDY, before, now)
    if before.get("name") != now["name"]:
        raise ConfigError(
            f"{folder} holds the study {before.get('name')!r}, not {now['name']!r}; "
            "choose another output folder for a second study"
        )
    changed = [name for name in now if name not in _FREE_ON_RESUME and before.get(name) != now[name]]
    if not changed:
        return
    what = ", ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
    if has_read_test(read(records_path(study))):
        raise ConfigError(
            "this study has read its test split; start a new one in a new folder to change its settings, "
            f"or set them back ({what})"
        )
    raise ConfigError(
        f"{folder} holds this study under other settings ({what}); set them back, "
        "or choose another output folder"
    )


def _refuse_to_overwrite(path: Path) -> None:
    """Refuse a study file that a user wrote or changed.

    A file of this program holds its values in its own notation, and no comments of a user.
    """
    try:
        content = path.read_text(encoding="utf-8")
        is_ours = content == in_yaml(yaml.safe_load(content))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{path} was written or changed by hand, and a study in {path.parent} would overwrite it; "
            "rename it, or choose another output folder"
        )
