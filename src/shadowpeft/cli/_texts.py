"""Text on the command line and in files of settings: it arrives as it was written.

jsonargparse reads values as YAML, in which much text means something else: `no`, `1e-3`, `[a]`, `# c`. So it
gets a stand-in for every text, and the text is put back into what it has parsed. Only the word `null` is left
to it where a setting may have no value.
"""

import secrets
import types
import typing
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import Namespace

from shadowpeft.errors import ConfigError

_STR, _INT, _BOOL, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "bool", "null"))


class Texts:
    """The texts of one command line and its files.

    Args:
        hints: the types of all settings by name.
        several: those settings that hold several names, separated by commas. For them a file may have a list
            or a number.
    """

    def __init__(self, hints: Mapping[str, Any], several: Collection[str] = ()) -> None:
        self._hints, self._several = hints, several
        self._texts: dict[str, str] = {}
        self._mark = secrets.token_hex(8)  # which no file holds

    def from_words(self, words: Sequence[str], flags: Collection[str]) -> list[str]:
        """Return the words of a command line with stand-ins; the flag of a list may be repeated.

        Args:
            words: the command line.
            flags: the names of all flags.

        Raises:
            ConfigError: a flag has no value behind it.
        """
        result, rest = [], deque(words)
        while rest:
            word = rest.popleft()
            flag, equals, text = word.partition("=")
            kinds = _kinds_of_text(self._hints.get(_name(flag)))
            if not flag.startswith("--") or not kinds or bool in kinds:
                result.append(word)
                continue
            is_list = list[str] in kinds
            if not equals:
                text = _value_behind(flag, rest, flags if is_list else None)
            if is_list:
                result.append(f'{flag}+=["{self._stand_in(text)}"]')
            elif text == "null" and types.NoneType in kinds:
                result.append(word if equals else f"{flag}={text}")
            else:
                result.append(f"{flag}={self._stand_in(text)}")
        return result

    def from_file(self, content: str) -> str:
        """Return a file's YAML with stand-ins."""
        root = yaml.compose(content, Loader=yaml.SafeLoader)
        assert isinstance(root, yaml.MappingNode), "a file that holds no settings has been refused"
        changed = []
        for key, value in root.value:
            kinds = _kinds_of_text(self._hints.get(key.value))
            if key.value in self._several:
                value = _joined(value)
                # What is no name is left to be refused.
                kinds = kinds if value.tag == _STR else ()
            changed.append((key, self._replaced(value, kinds)))
        root.value = changed
        return yaml.serialize(root, allow_unicode=True)

    def put_back(self, found: Namespace) -> Namespace:
        """Put the texts in the place of their stand-ins in what was parsed."""
        for name, value in list(found.items()):
            found[name] = self._original(value)
        return found

    def _stand_in(self, text: str) -> str:
        name = f"text-{self._mark}-{len(self._texts)}"
        self._texts[name] = text
        return name

    def _replaced(self, node: yaml.Node, kinds: Collection[Any]) -> yaml.Node:
        if list[str] in kinds and isinstance(node, yaml.SequenceNode):
            node.value = [self._replaced(entry, (str,)) for entry in node.value]
        if not kinds or not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            return node
        if node.tag == _BOOL and bool in kinds:
            return node
        return yaml.ScalarNode(_STR, self._stand_in(node.value))

    def _original(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._original(entry) for entry in value]
        return self._texts.get(value, value) if isinstance(value, str) else value


def _value_behind(flag: str, rest: deque[str], flags: Collection[str] | None) -> str:
    """Take the word that follows a flag of text.

    Args:
        flag: the flag.
        rest: the words behind it.
        flags: which words with two dashes are flags, not text; `None` for all, since a folder hardly begins
            with dashes.

    Raises:
        ConfigError: a flag follows, or nothing.
    """
    if not rest:
        raise ConfigError(f"{_as_written(flag)} needs a value behind it, got none")
    word = rest[0]
    if word.startswith("--") and (flags is None or _name(word) in flags):
        written = _as_written(flag)
        raise ConfigError(
            f"{written} needs a value behind it, got {word}; if that is the value, write {written}={word}"
        )
    return rest.popleft()


def _as_written(flag: str) -> str:
    """Return a flag in the words of the command line."""
    if flag == "--shadow_model":
        return "--shadow"
    return flag.replace("_", "-")


def _name(word: str) -> str:
    return word.removeprefix("--").partition("=")[0].replace("-", "_")


def _kinds_of_text(hint: Any) -> tuple[Any, ...]:
    """Return the types that a setting of text may have; none for other settings."""
    kinds = (hint,)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = typing.get_args(hint)
    return kinds if {str, list[str]} & set(kinds) else ()


def _joined(node: yaml.Node) -> yaml.Node:
    """Return a list of names, or a number, as one text."""
    parts = [node]
    if isinstance(node, yaml.SequenceNode):
        parts = node.value
    # A rank is a number.
    if not parts or any(part.tag not in (_STR, _INT) for part in parts):
        return node
    return yaml.ScalarNode(_STR, ",".join(part.value for part in parts))
