"""Rows of tokens, filled with documents one after another, from any place in the text.

A run that goes on from a place does not encode the text before it again.

Shapes in names: N tokens of a document, T of a row.
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.pretrain.corpus import Document, Unusable

_END_OF_TEXT = "<|endoftext|>"


class Source(Protocol):
    """Documents that can be read from any row on: a `Corpus` or a part of one."""

    source: str

    def read(self, first: int = 0) -> Iterator[Document | Unusable]:
        """Read from the row of index `first` on."""


class Place(NamedTuple):
    """A place in the text between two rows.

    Attributes:
        lap: how many times the text has been read to its end.
        document: index of the document in which the block of rows begins.
        offset: how many of that document's tokens come before the block.
        row: how many of the block's rows, in shuffled order, come before the place.
        empty: empty rows of the source before the block.
        undecodable: rows of the source before the block that could not be decoded.
    """

    lap: int = 0
    document: int = 0
    offset: int = 0
    row: int = 0
    empty: int = 0
    undecodable: int = 0


class _Row(NamedTuple):
    """A row of tokens, and the place where the next row begins."""

    ids_T: np.ndarray
    after: Place


class Encoder:
    """A map from documents to token ids: what the tokenizer puts before a text, the text, and a separator.

    Args:
        tokenizer: the base's.
        vocabulary: how many tokens the base knows.

    Raises:
        ConfigError: the tokenizer has no token to put between documents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        # A chat model's end-of-sequence token ends a turn. Its pretraining text was divided by the
        # end-of-text token.
        separator = tokenizer.get_vocab().get(_END_OF_TEXT, tokenizer.eos_token_id)
        if separator is None:
            raise ConfigError(
                "the tokenizer has no end-of-text token to put between documents; set tokenizer.eos_token"
            )
        self.separator = int(separator)
        bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        # Most tokenizers put tokens before a text alone; others put some behind it, too.
        before = len(whole) - len(bare)
        if whole[before:] != bare:
            before = whole.index(bare[0])
        self._before = whole[:before]

    def __call__(self, document: Document) -> np.ndarray:
        """Map a document, or a piece of one, to int64 ids.

        Raises:
            DataError: an id is beyond the base's vocabulary.
        """
        if isinstance(document.content, str):
            ids = self._tokenizer(document.content, add_special_tokens=False, verbose=False)["input_ids"]
            if document.begins:
                ids = [*self._before, *ids]
            if document.ends:
                ids = [*ids, self.separator]
        else:
            ids = document.content
        ids_N: np.ndarray = np.asarray(ids, dtype=np.int64)
        if len(ids_N) and ids_N.max() >= self._vocabulary:
            raise DataError(
                f"the text gives the token id {ids_N.max()}, but the model knows only "
                f"{self._vocabulary} tokens"
            )
        return ids_N


class Rows(IterableDataset):
    """An endless stream of rows of T tokens, shuffled within blocks, each with the place after it.

    A lap is one reading of the whole text. Tokens at the end of a lap that fill no row are left out.

    Args:
        corpus: the documents.
        encoder: maps documents to token ids.
        length: T.
        held_out: how many first documents are left out, with the unusable rows among them.
        block: number of rows that are shuffled together.
        seed: seed of their order, and of where rows begin in later laps.

    Attributes:
        first: index of the first row of the source after what is held out.
        start: where to begin.
        skipped: count of the source's rows without a document, by kind, in the part that the first lap has
            read.
        first_skipped: the first of each kind.
    """

    def __init__(
        self,
        corpus: Source,
        encoder: Encoder,
        length: int,
        *,
        held_out: int = 0,
        block: int = 1,
        seed: int = 0,
    ) -> None:
        self._corpus, self._encoder, self.length = corpus, encoder, length
        self._held_out, self._block, self._seed = held_out, block, seed
        self._passed: Counter[str] = Counter()  # of what is held out
        self.first = self._behind(held_out)
        self.start = Place(document=self.first)
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield rows from `start` on, lap after lap."""
        place = self.start
        self.skipped = Counter(empty=place.empty, undecodable=place.undecodable)
        while True:
            begin = place
            rows = self._in_order(begin)
            while block := list(islice(rows, self._block)):
                yield from self._shuffled(block, place)
                place = block[-1].after
            # The whole first lap gave no row. Later laps would give none either, and the loop would never
            # end.
            if place is begin and begin[:3] == (0, self.first, 0):
                self._refuse_too_short()
            place = self._next_lap(place)

    def _shuffled(self, block: "list[_Row]", place: Place) -> Iterator[dict[str, np.ndarray]]:
        """Yield a block's rows in shuffled order, from the place's row on, each with the place after it."""
        order = list(range(len(block)))
        # The seed is made of where the block begins, so that a resumed run shuffles it as the interrupted one
        # did.
        random.Random(f"{self._seed} {place.lap} {place.document} {place.offset}").shuffle(order)
        for number in range(place.row, len(block)):
            after = place._replace(row=number + 1)
            yield {"input_ids": block[order[number]].ids_T, "place": np.array(after)}

    def head(self, most: int) -> list[np.ndarray]:
        """Return the first `most` rows in order. If the text fills none, return what there is of it.

        Raises:
            DataError: there is not even a token to predict.
        """
        rows = [row.ids_T for row in islice(self._in_order(self.start, keep_short=True), most)]
        whole = [row for row in rows if len(row) == self.length]
        if not rows or (not whole and len(rows[0]) < 2):
            self._refuse_too_short()
        return whole or rows

    def _behind(self, documents: int) -> int:
        """Return the index of the source's row after its first `documents` documents, or of its end."""
        index = 0
        for found in self._corpus.read() if documents else ():
            index += 1
            if isinstance(found, Unusable):
                self._passed[found.kind] += 1
            else:
                documents -= 1
            if not documents:
                break
        return index

    def _refuse_too_short(self) -> None:
        beyond, bad = "", ""
        if self._held_out:
            beyond = f" behind the {_counted(self._held_out, 'document')} held out"
        passed = +(self._passed + self.skipped)  # the plus drops kinds that were counted 0 times
        if passed:
            kinds = ", ".join(_counted(count, f"{kind} row") for kind, count in passed.items())
            verb = {1: "was"}.get(passed.total(), "were")
            bad = f" ({kinds} {verb} passed over)"
        raise DataError(
            f"{self._corpus.source}: expected at least one row of {self.length} tokens{beyond}, got less text"
            f"{bad}; add text, lower max_length or hold out less"
        )

    def _next_lap(self, place: Place) -> Place:
        """Return the start of the next lap, shifted by a part of a row: its rows begin at other tokens."""
        lap = place.lap + 1
        shift = random.Random(f"{self._seed} {lap}").randrange(self.length)
        return self._place(lap, self.first, shift)

    def _in_order(self, place: Place, keep_short: bool = False) -> "Iterator[_Row]":
        """Yield rows in the order of the text, from a place to the end of the lap."""
        parts: list[np.ndarray] = []
        missing = self.length
        for index, found in enumerate(self._corpus.read(place.document), start=place.document):
            if isinstance(found, Unusable):
                self._count_unusable(found, place.lap)
                continue
            ids, taken = self._encoder(found), 0
            if index == place.document:
                taken = place.offset
            # A document may fill several rows; what is left of it begins the next one.
            while len(ids) - taken >= missing:
                row_T = np.concatenate([*parts, ids[taken : taken + missing]])
                taken, parts, missing = taken + missing, [], self.length
                yield _Row(row_T, self._place(place.lap, index, taken))
            if taken < len(ids):
                parts.append(ids[taken:])
                missing -= len(ids) - taken
        if keep_short and parts:
            yield _Row(np.concatenate(parts), place)

    def _count_unusable(self, row: Unusable, lap: int) -> None:
        # Later laps read the same rows again.
        if lap:
            return
        self.skipped[row.kind] += 1
        self.first_skipped.setdefault(row.kind, row.where)

    def _place(self, lap: int, document: int, offset: int) -> Place:
        return Place(
            lap,
            document,
            offset,
            empty=self.skipped["empty"],
            undecodable=self.skipped["undecodable"],
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def collate(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Stack rows into `input_ids`, (B, T), and `places`, (B, 6), the place in the text after each row."""
    ids_BT = torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
    places_B6 = torch.from_numpy(np.stack([row["place"] for row in rows]))
    return {"input_ids": ids_BT, "places": places_B6}
