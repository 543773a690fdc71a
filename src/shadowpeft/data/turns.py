"""Where each message of a chat ends in its rendered text, found by rendering the chat once.

A template may render a message otherwise once others follow, so what a beginning of a chat looks like is only
known by rendering that beginning, which for each turn of a long chat takes time in the square of its length.
But a template that has not yet looked at the messages that follow cannot depend on them. So the messages are
handed to it one by one, and it is noted how much of them it has seen when a message is over.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jinja2 import nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from shadowpeft.data.rows import Chat

_MESSAGES, _NOTE = "messages", "note_the_end_of_a_message"
# What the template is rendered with, as JSON, as transformers hands it over.
_HANDED = "{{ {'messages': messages, 'tools': tools, 'documents': documents}|tojson }}"


class _Rendering(NamedTuple):
    """A chat rendered once.

    Attributes:
        text: all of it.
        body: the length up to the end of the last message; behind it is what ends any chat.
        ends: for each message, the length up to its end; `None` if the template had then seen more.
    """

    text: str
    body: int
    ends: list[int | None]


class Turns(NamedTuple):
    """A chat rendered without and with a generation prompt.

    Attributes:
        text: the whole chat as it is encoded.
        plain: rendered without the prompt.
        prompted: rendered with it.
        common: how many characters both begin with.
    """

    text: str
    plain: _Rendering
    prompted: _Rendering
    common: int

    def holds(self, index: int) -> bool:
        """Return whether the ends of a message and of the one before it are known."""
        if index == 0:
            return False
        before, through = self.prompted.ends[index - 1], self.plain.ends[index]
        return before is not None and through is not None and before <= min(self.common, through)

    def bounds(self, index: int) -> tuple[int, int] | None:
        """Return how long the messages before an answer are with the generation prompt, and with the answer.

        Return `None` if they are rendered otherwise in the whole chat.
        """
        before, through = self.prompted.ends[index - 1], self.plain.ends[index]
        assert before is not None, "asked of a message that is not held"
        assert through is not None, "asked of a message that is not held"
        prompt, tail = self.prompted.text[self.prompted.body :], self.plain.text[self.plain.body :]
        turn = self.plain.text[before:through] + tail
        if not turn.startswith(prompt) or not self.text.startswith(tail, through):
            return None
        return before + len(prompt), through + len(tail)


def find_turns(text: str, chat: Chat, tokenizer: PreTrainedTokenizerBase) -> Turns | None:
    """Find where the messages of a chat end; `None` if the template does not show it.

    Args:
        text: the chat as transformers renders it without a generation prompt.
        chat: the messages, and what else the template reads.
        tokenizer: the tokenizer that has the template.
    """
    source = tokenizer.get_chat_template(None, chat.options.get("tools"))
    # What templates do with messages that are no list, and how they fail, has no bounds. Without the fast way
    # every beginning is rendered, which is as right.
    try:
        template = _with_notes(source)
        if template is None:
            return None
        told: dict[str, Any] = {"chat_template": _HANDED, "tokenize": False, **chat.options}
        handed = json.loads(str(tokenizer.apply_chat_template(chat.messages, **told)))
        others = {name: value for name, value in chat.options.items() if name not in handed}
        context = {**tokenizer.special_tokens_map, **others, **handed}
        plain, prompted = (
            _rendered(template, context | {"add_generation_prompt": prompt}) for prompt in (False, True)
        )
    except Exception:
        return None
    if plain.text != text:
        return None
    return Turns(text, plain, prompted, _common(plain.text, prompted.text))


def _common(one: str, other: str) -> int:
    """Return how many characters two texts both begin with."""
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))


@functools.lru_cache(maxsize=8)
def _with_notes(source: str) -> Any:
    """Return the template with a note at the end of its loop over messages, `None` if it has no such loop.

    That loop must not be inside anything that holds its output back, and what follows it must be the same for
    every chat: it names nothing that the template sets, nor the messages.
    """
    environment = _compile_jinja_template(source).environment
    tree = environment.parse(source)
    if any(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block))):
        return None
    changing = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    changing |= {reference.name for reference in tree.find_all(nodes.NSRef)}
    changing |= {macro.name for macro in tree.find_all(nodes.Macro)}
    changing |= {_MESSAGES, "loop", "self", "caller", "varargs", "kwargs"}
    found = False
    for loop, behind in _open_loops(tree.body, []):
        names = {name.name for node in behind for name in _names(node)}
        if loop.else_ or loop.recursive or not isinstance(loop.target, nodes.Name) or names & changing:
            continue
        note = nodes.Call(nodes.Name(_NOTE, "load"), [nodes.Name(loop.target.name, "load")], [], None, None)
        loop.body.append(nodes.Output([note]))
        found = True
    tree.set_environment(environment)
    return environment.from_string(tree) if found else None


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


def _open_loops(
    body: Sequence[nodes.Node], behind: list[nodes.Node]
) -> Iterator[tuple[nodes.For, list[nodes.Node]]]:
    """Yield the loops whose output comes out at once, each with all that follows it."""
    for place, node in enumerate(body):
        rest = [*body[place + 1 :], *behind]
        if isinstance(node, nodes.For):
            yield node, rest
        elif isinstance(node, nodes.If):
            # Of an `if` one branch runs, so the other ones do not follow.
            for branch in (node.body, *(other.body for other in node.elif_), node.else_):
                yield from _open_loops(branch, rest)


def _rendered(template: Any, context: dict[str, Any]) -> _Rendering:
    watched = _Watched(context[_MESSAGES])
    pieces: list[str] = []
    length = 0
    ends: list[int | None] = [None] * len(watched.messages)

    def note(message: object) -> str:
        # In order, each once, and the template knows of no message behind it.
        index = watched.seen
        if watched.handed == index and message is watched.messages[index]:
            ends[index] = length
        return ""

    for piece in template.generate({**context, _MESSAGES: watched, _NOTE: note}):
        pieces.append(piece)
        length += len(piece)
    body = ends[-1]
    if body is None:
        raise ValueError("the end of the last message is not known")
    return _Rendering("".join(pieces), body, ends)


class _Watched:
    """Messages that know how many of them were looked at.

    Whatever is asked of them and not written here fails, or shows them all.

    Args:
        messages: the messages; each is copied, so that no two are the same object.

    Attributes:
        messages: the copies.
        seen: index of the last one looked at; their number if it is known where they end.
        handed: index of the last one that a loop was given.
    """

    def __init__(self, messages: Sequence[dict[str, Any]]) -> None:
        self.messages = [dict(message) for message in messages]
        self.seen, self.handed = 0, -1

    def look(self, index: int) -> None:
        """Note that it is known whether there is a message of this index."""
        self.seen = max(self.seen, index)

    def hand(self, index: int) -> dict[str, Any]:
        """Give a message to a loop."""
        self.handed = index
        return self.messages[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(_From(self, 0))

    def __getitem__(self, key: Any) -> Any:
        return _From(self, 0)[key]

    def __len__(self) -> int:
        return len(_From(self, 0))

    def __bool__(self) -> bool:
        return bool(_From(self, 0))

    def __eq__(self, other: object) -> bool:
        return _From(self, 0) == other

    __hash__ = None  # type: ignore[assignment]


class _From:
    """Watched messages from one of them on, as `messages[1:]` is.

    Args:
        watched: all of them.
        first: index of the first.
    """

    def __init__(self, watched: _Watched, first: int) -> None:
        self._watched, self._first = watched, first

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self._first, len(self._watched.messages)):
            self._watched.look(index)
            yield self._watched.hand(index)
        self._all()

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.stop is None and key.step is None and (key.start or 0) >= 0:
            return _From(self._watched, self._first + (key.start or 0))
        if isinstance(key, int) and 0 <= key < len(self._watched.messages) - self._first:
            self._watched.look(self._first + key)
            return self._watched.messages[self._first + key]
        return self._all()[key]

    def __len__(self) -> int:
        return len(self._all())

    def __bool__(self) -> bool:
        if self._first < len(self._watched.messages):
            self._watched.look(self._first)
            return True
        return bool(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == other

    __hash__ = None  # type: ignore[assignment]

    def _all(self) -> list[dict[str, Any]]:
        self._watched.look(len(self._watched.messages))
        return self._watched.messages[self._first :]
