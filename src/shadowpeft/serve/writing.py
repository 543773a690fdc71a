"""An answer as it is written: token ids become text, and what may be part of a stop string is held back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from shadowpeft.data.encode import Opening
from shadowpeft.generate.choose import Chosen
from shadowpeft.serve.backend import Finish, Piece, Token, Usage

# What a decoder writes for bytes that are no character yet.
_BROKEN = "\ufffd"


class Decoder:
    """Turns ids into text one by one, so that the parts together are what decoding all of them gives.

    Args:
        tokenizer: the model's tokenizer.
        before: ids before the first, by which some tokenizers tell whether a space belongs there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # The ids of a window: those whose text is out, from some place on, and those whose is not.
        self._ids, self._out = list(before), len(before)

    def add(self, token: int) -> str:
        """Return the text that a token adds; empty while a character is incomplete."""
        self._ids.append(token)
        before = self._text(self._ids[: self._out])
        whole = self._text(self._ids)
        if len(whole) <= len(before) or whole.endswith(_BROKEN):
            return ""
        self._ids, self._out = self._ids[self._out :], len(self._ids) - self._out
        return whole[len(before) :]

    def rest(self) -> str:
        """Return what is left at the end: a character that stays incomplete."""
        return self._text(self._ids)[len(self._text(self._ids[: self._out])) :]

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class Vocabulary:
    """The texts of single tokens.

    Args:
        tokenizer: the model's tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def text(self, token: int) -> str:
        """Return the text of a token by itself."""
        if token not in self._texts:
            self._texts[token] = str(self._tokenizer.decode([token]))
        return self._texts[token]


@dataclass(frozen=True)
class Ends:
    """What ends an answer.

    Attributes:
        ids: tokens that end it and are not in it.
        stop: texts that do.
        most: the most tokens it may have.
    """

    ids: frozenset[int]
    stop: tuple[str, ...]
    most: int


@dataclass
class Writing:
    """One answer.

    Attributes:
        prompt_tokens: how many tokens its prompt has.
        ends: what ends it.
        decoder: makes text of its ids.
        opening: what a chat template puts before its content, which is left out.
        reads_tokens: the tokens of each piece are wanted, with their log-probabilities.
        vocabulary: names the likeliest tokens.
        finish: why it ended; `None` while it is written.
    """

    prompt_tokens: int
    ends: Ends
    decoder: Decoder
    vocabulary: Vocabulary
    opening: Opening = field(default_factory=Opening)
    reads_tokens: bool = False
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self._count = 0
        self._held: list[Token] = []
        self._opened = not self.opening.text.strip()

    def add(self, chosen: Chosen) -> Piece | None:
        """Take in a token; return what is sure now, `None` if nothing is."""
        assert self.finish is None
        self._count += 1
        if chosen.token in self.ends.ids:
            rest = self.decoder.rest()
            self._held.append(replace(self._token(chosen, ""), is_silent=True))
            return self._end("stop", rest)
        self._held.append(self._token(chosen, self.decoder.add(chosen.token)))
        if self._is_stopped():
            return self._end("stop")
        if self._count >= self.ends.most:
            return self._end("length", self.decoder.rest())
        return self._piece(self._sure())

    def _token(self, chosen: Chosen, text: str) -> Token:
        top = tuple((self.vocabulary.text(token), logprob) for token, logprob in chosen.top)
        return Token(text, chosen.logprob, top, chosen.entropy, chosen.token)

    def _is_stopped(self) -> bool:
        """Cut what is held at the first stop string, if there is one."""
        held = "".join(token.text for token in self._held)
        places = [place for stop in self.ends.stop if (place := held.find(stop)) >= 0]
        if not places:
            return False
        self._held = _cut(self._held, min(places))
        return True

    def _end(self, finish: Finish, rest: str = "") -> Piece:
        """Return the last piece, with the text of a character that stays incomplete."""
        self.finish = finish
        # The token that ends an answer is held too, so there is one to give the text to.
        if rest:
            self._held[-1] = replace(self._held[-1], text=self._held[-1].text + rest)
        piece = self._piece(len(self._held), at_end=True) or Piece()
        return replace(piece, finish=finish, usage=Usage(self.prompt_tokens, self._count))

    def _sure(self) -> int:
        """Return how many of the held tokens cannot be part of a stop string."""
        held = "".join(token.text for token in self._held)
        doubt = max((_overlap(held, stop) for stop in self.ends.stop), default=0)
        sure, length = 0, 0
        for token in self._held:
            length += len(token.text)
            if length > len(held) - doubt:
                break
            sure += 1
        # A token without text waits for the character that it is a part of.
        while sure and not self._held[sure - 1].text:
            sure -= 1
        return sure

    def _piece(self, count: int, at_end: bool = False) -> Piece | None:
        """Return the first of the held tokens, without the opening."""
        if not self._opened:
            count = self._open(count, at_end)
        tokens, self._held = self._held[:count], self._held[count:]
        if not tokens:
            return None
        text = "".join(token.text for token in tokens)
        return Piece(text, tuple(tokens) if self.reads_tokens else ())

    def _open(self, count: int, at_end: bool) -> int:
        """Take the opening off what is held; return how many tokens are sure then, 0 while it is in doubt."""
        text, opening = "".join(token.text for token in self._held[:count]), self.opening.text.strip()
        begun = text.strip()
        if len(begun) < len(opening) and opening.startswith(begun) and not at_end:
            return 0
        # White space behind the opening belongs to it, and may still be to come.
        content = self.opening.content_of(text)
        if content == "" and begun == opening and not at_end:
            return 0
        self._opened = True
        if content == text:
            return count
        self._held = _silenced(self._held, len(text) - len(content))
        return count


def _overlap(text: str, stop: str) -> int:
    """Return how long the longest end of a text is that begins a stop string."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _cut(tokens: list[Token], length: int) -> list[Token]:
    """Return the tokens whose text begins before a place, the last one cut there."""
    kept: list[Token] = []
    for token in tokens:
        if length <= 0:
            break
        kept.append(replace(token, text=token.text[:length]))
        length -= len(token.text)
    return kept


def _silenced(tokens: list[Token], length: int) -> list[Token]:
    """Take so many characters off the beginning; tokens of which nothing is left are silent."""
    found = []
    for token in tokens:
        text, length = token.text[length:], max(0, length - len(token.text))
        found.append(replace(token, text=text, is_silent=token.is_silent or not text))
    return found
