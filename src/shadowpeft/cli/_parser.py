"""From a verb's typed function to its flags, help and config file, through jsonargparse.

A misspelt name is refused with the nearest one.
"""

import dataclasses
import inspect
import os
import re
import typing
from argparse import SUPPRESS
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from shadowpeft.checked_fields import holding_several, nearest
from shadowpeft.cli._texts import Texts
from shadowpeft.errors import ConfigError

# What jsonargparse says of a value that is none of several types.
_UNION = re.compile(
    r"\n  Does not validate against any of the Union.*?Subtypes: \[(.*?)\]\n.*Given value: (.*)", re.DOTALL
)
# A setting's text stands under its field.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Parser(ArgumentParser):
    """A parser whose files are UTF-8.

    Attributes:
        texts: the texts of the command line and its files.
    """

    texts = Texts({})

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Namespace:
        # jsonargparse would read in the encoding of the locale.
        return self.parse_string(_read(Path(path)), *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        return super().parse_string(self.texts.from_file(content), *args, **kwargs)


def build(verb: str, run: Callable[..., Any]) -> _Parser:
    """Make the parser of a verb.

    Args:
        verb: its name.
        run: its function. The fields of a dataclass parameter named `settings` become flags of their own.
    """
    hints = _hints(run)
    summary = inspect.getdoc(run) or ""
    parser = _Parser(
        prog=f"shadowpeft {verb}",
        usage=f"shadowpeft {verb} [flags]",
        description=summary.partition("\n\n")[0],
        exit_on_error=False,
        print_config=None,
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these settings; flags override it"
    )
    settings = typing.get_type_hints(run).get("settings")
    if settings is not None:
        parser.add_class_arguments(settings)
    parser.texts = Texts(hints, [] if settings is None else holding_several(settings))
    # As a group it would be headed by the first line of the docstring, wherever that breaks off.
    parser.add_function_arguments(run, as_group=False, skip={"settings"})
    for action in parser._actions:
        _as_users_write(parser, action, hints.get(action.dest))
    _show_shadow(parser)
    _hide_groups(parser)
    return parser


def parse(verb: str, run: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of a verb's function from a command line, or `None` if it only asked for help.

    Raises:
        ConfigError: a flag, key or value is not known, or a required one is missing.
    """
    parser = build(verb, run)
    known = flags(parser)
    every = {*known, *_groups(known), "config", "help"}
    try:
        words = parser.texts.from_words(_as_fields(words, known), every)
        _refuse_unknown(words, known, verb)
        found = parser.texts.put_back(parser.parse_args(words))
        _check_groups(vars(found), _hints(run))
        values = dict(vars(parser.instantiate(found)))
    except ArgumentError as error:
        raise ConfigError(_plain(str(error))) from error
    except SystemExit:  # --help was printed
        return None
    values.pop("config")
    settings = typing.get_type_hints(run).get("settings")
    if settings is None:
        return values
    names = {entry.name for entry in dataclasses.fields(settings)}
    own = {name: value for name, value in values.items() if name not in names}
    return {"settings": settings(**{name: values[name] for name in names}), **own}


def _check_groups(found: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Name a setting of a group as its flag does: the run may have one of the same name.

    Raises:
        ConfigError: a setting of a group is refused.
    """
    for group, values in found.items():
        kind = hints.get(group)
        if not dataclasses.is_dataclass(kind) or not isinstance(values, Namespace):
            continue
        try:
            kind(**vars(values))  # type: ignore[operator]
        except ConfigError as error:
            names = {entry.name for entry in dataclasses.fields(kind)}
            first = str(error).partition(" ")[0]
            raise ConfigError(f"{group}.{error}" if first in names else str(error)) from error


def flags(parser: ArgumentParser) -> list[str]:
    """List the settings of a parser by name, those of a group with its name and a dot before theirs."""
    return [name for name in parser.get_defaults().keys(branches=False) if name != "config"]


def _hints(run: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(run)
    settings = hints.pop("settings", None)
    hints.pop("return", None)
    if settings is None:
        return hints
    return {**typing.get_type_hints(settings), **hints}


def _as_users_write(parser: ArgumentParser, action: Any, hint: Any) -> None:
    """Accept and show dashes for underscores, and let a switch stand without `true`."""
    dashed = [option.replace("_", "-") for option in action.option_strings]
    for option in dashed:
        parser._option_string_actions[option] = action
    action.option_strings = dashed
    if hint is bool or bool in typing.get_args(hint):
        action.nargs, action.const = "?", True


def _show_shadow(parser: ArgumentParser) -> None:
    """Show `--shadow FOLDER` in the help in place of `--shadow-model`. `_as_fields` translates it.

    jsonargparse would take the bare name of the group `--shadow.r` for a file with the group's settings.
    Settings in files are what `--config` is for.
    """
    actions = {action.dest: action for action in parser._actions}
    folder, group = actions.get("shadow_model"), actions.get("shadow")
    if folder is None:
        return
    if group is None:
        folder.option_strings, folder.metavar = ["--shadow"], "FOLDER"
    else:
        group.help, group.metavar = f"{folder.help} (in a file: shadow_model)", "FOLDER"
        folder.help = SUPPRESS


def _hide_groups(parser: ArgumentParser) -> None:
    """Show a group's settings, and not its bare name, which jsonargparse would take for a file of them."""
    groups = _groups(flags(parser))
    for action in parser._actions:
        if action.dest in groups and action.metavar != "FOLDER":
            action.help = SUPPRESS


def _as_fields(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Rename `--shadow FOLDER` to the field it sets. In files, `shadow` holds the adapter's settings."""
    if "shadow_model" not in known:
        return list(words)
    # The flag alone: a value may hold the same text, such as the folder `run--shadow`.
    flag = re.compile(r"\A--shadow(?=\Z|=)")
    return [flag.sub("--shadow_model", word) for word in words]


def _refuse_unknown(words: Sequence[str], known: Sequence[str], verb: str) -> None:
    groups = _groups(known)
    for position, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.removesuffix("+")  # of a list, see `_repeated`
        if not word.startswith("--") or word == "--help":
            continue
        if name == "config":
            if not equals:
                value = next(iter(words[position + 1 :]), "")
            _refuse_unknown_keys(Path(value), known)
        elif name in groups:
            first = next(other for other in known if other.startswith(f"{name}."))
            raise ConfigError(f"--{name} begins the names of several flags, such as --{first}; give these")
        elif name.replace("-", "_") not in known:
            raise ConfigError(
                f"unknown flag --{name}{_nearest_flag(name, known)}; see shadowpeft {verb} --help"
            )


def _refuse_unknown_keys(path: Path, known: Sequence[str]) -> None:
    try:
        content = yaml.safe_load(_read(path))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold settings as 'name: value' lines, got {type(content).__name__}")
    for group in _groups(known) & content.keys():
        _refuse_no_group(path, group, content[group], known=known)
    for key in _flat_keys(content, known):
        if key not in known and not any(name.startswith(f"{key}.") for name in known):
            raise ConfigError(f"{path}: unknown setting {key!r}{nearest(key, known)}")


def _refuse_no_group(path: Path, group: str, value: object, *, known: Sequence[str]) -> None:
    """Refuse a file that holds something else where a group of settings belongs."""
    if isinstance(value, dict):
        return
    got, remedy = repr(value), ""
    if value is None:
        got = "null"
    if isinstance(value, str) and f"{group}_model" in known:
        remedy = f"; a folder to start from is {group}_model"
    raise ConfigError(f"{path}: {group} must hold settings, got {got}{remedy}")


def _groups(known: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in known} - {""}


def _flat_keys(content: dict[Any, Any], known: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Yield the settings of a file by name. Below a setting that is known itself, a mapping is its value."""
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in known:
            yield from _flat_keys(value, known, f"{name}.")
        else:
            yield name


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"--config needs a YAML file, there is none at {str(path)!r}") from None


def _nearest_flag(name: str, known: Sequence[str]) -> str:
    return nearest("--" + name.replace("_", "-"), ["--" + other.replace("_", "-") for other in known])


def _plain(message: str) -> str:
    """Return jsonargparse's message in one line, in the words of the command line."""
    message = message.replace("argument --shadow-model:", "argument --shadow:")
    message = _UNION.sub(lambda found: f" expected {_types(found[1])}, got {found[2]}", message)
    for old, new in (
        ("Parser key ", ""),
        (":\n  Expected a <class '", ": expected "),
        ("'>. Got value:", ", got"),
        ("typing.", ""),
    ):
        message = message.replace(old, new)
    return " ".join(message.replace("\n  Expected a ", " expected ").replace(". Got value:", ", got").split())


def _types(names: str) -> str:
    return (
        re.sub(r"(?<=[>\]]), ", " or ", names)
        .replace("<class 'NoneType'>", "null")
        .replace("<class '", "")
        .replace("'>", "")
    )
