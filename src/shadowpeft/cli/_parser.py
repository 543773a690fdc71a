"""From a verb's typed function to its flags, help and config file, through jsonargparse.

A misspelt name is refused with the nearest one.
"""

import dataclasses
import inspect
import os
import re
import types
import typing
from argparse import SUPPRESS
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from shadowpeft.checked_fields import holding_several, nearest
from shadowpeft.errors import ConfigError

# What jsonargparse says of a value that is none of several types.
_UNION = re.compile(
    r"\n  Does not validate against any of the Union.*?Subtypes: \[(.*?)\]\n.*Given value: (.*)", re.DOTALL
)
_STR, _BOOL, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "null"))
# What a name may be in a file; a rank is a number.
_NAMES = (_STR, "tag:yaml.org,2002:int")


# A setting's text stands under its field.
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Parser(ArgumentParser):
    """A parser whose files are UTF-8 and hold text, just as it is written there, where a setting is text.

    Attributes:
        hints: the types of the settings by name.
        several: the names of those settings that hold several names, separated by commas, for which a file
            may have a list.
    """

    hints: Mapping[str, Any] = MappingProxyType({})
    several: Collection[str] = ()

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Namespace:
        # jsonargparse would read in the encoding of the locale.
        return self.parse_string(_read(Path(path)), *args, **kwargs)

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        content = _with_plain_text(content, self.hints, self.several)
        return super().parse_string(content, *args, **kwargs)


def build(verb: str, run: Callable[..., Any]) -> ArgumentParser:
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
        parser.several = holding_several(settings)
    parser.hints = hints
    parser.add_function_arguments(run, skip={"settings"})
    for action in parser._actions:
        _as_users_write(parser, action, hints.get(action.dest))
    _show_shadow(parser)
    return parser


def parse(verb: str, run: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """Return the arguments of a verb's function from a command line, or `None` if it only asked for help.

    Raises:
        ConfigError: a flag, key or value is not known, or a required one is missing.
    """
    parser = build(verb, run)
    known = flags(parser)
    words, texts = _set_aside(_as_fields(words, known), known, _hints(run))
    try:
        _refuse_unknown(words, known, verb)
        found = parser.parse_args(words)
        values = dict(vars(parser.instantiate(_put_back(found, texts))))
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


def _as_fields(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """Rename `--shadow FOLDER` to the field it sets. In files, `shadow` holds the adapter's settings."""
    if "shadow_model" not in known:
        return list(words)
    # The flag alone: a value may hold the same text, such as the folder `run--shadow`.
    flag = re.compile(r"\A--shadow(?=\Z|=)")
    return [flag.sub("--shadow_model", word) for word in words]


def _set_aside(
    words: Sequence[str], known: Sequence[str], hints: Mapping[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Replace the values of flags that are text by stand-ins, and let the flag of a list be repeated.

    jsonargparse reads values as YAML, in which much text means something else. Only the word `null` is left
    to it where a setting may have no value.

    Returns:
        The words, and what each stand-in stands for.

    Raises:
        ConfigError: a flag has no value behind it.
    """
    result, texts, rest = [], {}, deque(words)
    while rest:
        word = rest.popleft()
        flag, equals, text = word.partition("=")
        hint = hints.get(flag.removeprefix("--").replace("-", "_"))
        kinds = _kinds_of_text(hint)
        if not flag.startswith("--") or not kinds or bool in kinds:
            result.append(word)
            continue
        if not equals:
            text = _value_behind(flag, rest, known, repeats=list[str] in kinds)
        if text == "null" and types.NoneType in kinds and list[str] not in kinds:
            result.append(f"{flag}=null")
            continue
        stand_in = f"text-{len(texts)}"
        texts[stand_in] = text
        result.append(f'{flag}+=["{stand_in}"]' if list[str] in kinds else f"{flag}={stand_in}")
    return result, texts


def _value_behind(flag: str, rest: deque[str], known: Sequence[str], repeats: bool) -> str:
    """Take the value that follows a flag, which is not itself a flag.

    A text to be answered may begin with dashes, a name or folder hardly does.
    """
    following = rest[0] if rest else None
    name = (following or "").removeprefix("--").partition("=")[0].replace("-", "_")
    is_flag = following is not None and following.startswith("--")
    if repeats:
        is_flag = is_flag and name in (*known, *_groups(known), "config", "help")
    if following is None or is_flag:
        remedy = "" if following is None else f"; if {following} is the value, write {flag}={following}"
        raise ConfigError(f"{flag} needs a value behind it, got {following or 'none'}{remedy}")
    return rest.popleft()


def _put_back(found: Namespace, texts: Mapping[str, str]) -> Namespace:
    """Return parsed values with the text for its stand-ins."""

    def original(value: Any) -> Any:
        if isinstance(value, list):
            return [original(entry) for entry in value]
        return texts.get(value, value) if isinstance(value, str) else value

    for name, value in list(found.items()):
        found[name] = original(value)
    return found


def _kinds_of_text(hint: Any) -> tuple[Any, ...]:
    """Return the types that a setting of text may have; none for other settings."""
    kinds = (hint,)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = typing.get_args(hint)
    return kinds if {str, list[str]} & set(kinds) else ()


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
        elif name.replace("-", "_") not in (*known, *groups):
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


def _with_plain_text(content: str, hints: Mapping[str, Any], several: Collection[str]) -> str:
    """Return a file's YAML with what stands at a setting of text quoted, so that it is read as text.

    A list or a number becomes a text where a setting holds several names.
    """
    root = yaml.compose(content, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "a file that holds no settings has been refused"
    changed = []
    for key, value in root.value:
        if key.value in several:
            value = _as_text(value)
        changed.append((key, _quoted(value, _kinds_of_text(hints.get(key.value)))))
    root.value = changed
    return yaml.serialize(root, allow_unicode=True)


def _quoted(node: yaml.Node, kinds: Collection[Any]) -> yaml.Node:
    """Return a value of a file as the text that stands there, unless its setting may be what YAML reads."""
    if list[str] in kinds and isinstance(node, yaml.SequenceNode):
        node.value = [_quoted(entry, (str,)) for entry in node.value]
    if not kinds or not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        return node
    if node.tag == _BOOL and bool in kinds:
        return node
    return yaml.ScalarNode(_STR, node.value, style='"')


def _as_text(node: yaml.Node) -> yaml.Node:
    parts = [node]
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    if not parts or any(part.tag not in _NAMES for part in parts):
        return node
    return yaml.ScalarNode(_STR, ",".join(part.value for part in parts))


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
