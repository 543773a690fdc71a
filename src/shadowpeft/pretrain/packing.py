"""Documents to rows of tokens, one behind another, from any place of the text on: what was read before need not be read again.

Shapes in names: N tokens of a document, T of a row.
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.pretrain.corpus import Corpus, Document, Unusable

_END_OF_TEXT = "<|endoftext|>"


class Place(NamedTuple):
    """A place in the text, between two rows.

    Attributes:
        lap: how many times the text was read to its end.
        document: index of the document in which the block of rows begins.
        offset: how many of that document's tokens come before the block.
        row: how many of the block's rows, as shuffled, come before the place.
        empty: empty rows of the source before the block.
        undecodable: undecodable ones.
    """

    lap: int = 0
    document: int = 0
    offset: int = 0
    row: int = 0
    empty: int = 0
    undecodable: int = 0


class Encoder:
    """A document to token ids: what the tokenizer puts before a text, the text, and the separator behind it.

    Args:
        tokenizer: the base's.
        vocabulary: how many tokens the base knows.

    Raises:
        ConfigError: the tokenizer has no token to put between documents.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        # A chat model's end-of-sequence token ends a turn; the text it was pretrained on was divided by the other one.
        separator = tokenizer.get_vocab().get(_END_OF_TEXT, tokenizer.eos_token_id)
        if separator is None:
            raise ConfigError(
                "the tokenizer has no end-of-text token to put between documents; set tokenizer.eos_token"
            )
        self.separator = int(separator)
        bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        self._before = (
            whole[: len(whole) - len(bare)] if whole[-len(bare) :] == bare else whole[: whole.index(bare[0])]
        )

    def __call__(self, document: Document) -> np.ndarray:
        """Map a document, or a piece of one, to int64 ids.

        Raises:
            DataError: an id is beyond the base's vocabulary.
        """
        if isinstance(document.content, str):
            ids = self._tokenizer(document.content, add_special_tokens=False, verbose=False)["input_ids"]
            ids = [
                *(self._before if document.begins else []),
                *ids,
                *([self.separator] if document.ends else []),
            ]
        else:
            ids = document.content
        ids_N: np.ndarray = np.asarray(ids, dtype=np.int64)
        if len(ids_N) and ids_N.max() >= self._vocabulary:
            raise DataError(
                f"the text gives the token id {ids_N.max()}, but the model knows only {self._vocabulary} tokens"
            )
        return ids_N


class Rows(IterableDataset):
    """Endless rows of T tokens, shuffled within blocks, each with the place behind it. What fills no row at the end of a lap is left out.

    Args:
        corpus: the documents.
        encoder: makes tokens of them.
        length: T.
        held_out: so many first documents are left out, with the unusable rows among and before them.
        block: rows that are shuffled together.
        seed: decides their order, and where rows begin in later laps.

    Attributes:
        first: index of the row of the source behind what is held out.
        start: where to begin.
        skipped: rows of the source without a document, by kind, as far as it was read in the first lap.
        first_skipped: the first of each kind.
    """

    def __init__(
        self, corpus: Corpus, encoder: Encoder, length: int, held_out: int = 0, block: int = 1, seed: int = 0
    ) -> None:
        self._corpus, self._encoder, self.length = corpus, encoder, length
        self._held_out, self._block, self._seed = held_out, block, seed
        self._passed: Counter[str] = Counter()  # of what is held out
        self.first = self._behind(held_out)
        self.start = Place(document=self.first)
        self.skipped: Counter[str] = Counter()
        self.first_skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Give rows from `start` on."""
        place = self.start
        self.skipped = Counter(empty=place.empty, undecodable=place.undecodable)
        while True:
            rows, got = self._in_order(place), False
            while True:
                block = list(islice(rows, self._block))
                if not block:
                    break
                got = True
                order = list(range(len(block)))
                random.Random(f"{self._seed} {place.lap} {place.document} {place.offset}").shuffle(order)
                for number in range(place.row, len(block)):
                    yield {
                        "input_ids": block[order[number]][0],
                        "place": np.array(place._replace(row=number + 1)),
                    }
                _, document, offset, empty, undecodable = block[-1]
                place = Place(place.lap, document, offset, 0, empty, undecodable)
            if not got and place[:3] == (0, self.first, 0):
                self._refuse_too_short()
            place = self._next_lap(place)

    def head(self, most: int) -> list[np.ndarray]:
        """Take the first rows in order; where the text fills none, what there is of it.

        Raises:
            DataError: there is not even a token to predict.
        """
        rows = [row for row, *_ in islice(self._in_order(self.start, keep_short=True), most)]
        whole = [row for row in rows if len(row) == self.length]
        if not rows or (not whole and len(rows[0]) < 2):
            self._refuse_too_short()
        return whole or rows

    def _behind(self, documents: int) -> int:
        """Find the row of the source behind so many documents, or its end."""
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
        beyond = f" behind the {_counted(self._held_out, 'document')} held out" if self._held_out else ""
        passed = +(self._passed + self.skipped)
        bad = ", ".join(_counted(count, f"{kind} row") for kind, count in passed.items())
        were = "was" if passed.total() == 1 else "were"
        raise DataError(
            f"{self._corpus.source}: expected at least one row of {self.length} tokens{beyond}, got less text"
            f"{f' ({bad} {were} passed over)' if bad else ''}; add text, lower max_length or hold out less"
        )

    def _next_lap(self, place: Place) -> Place:
        """Begin again a little further on, so that rows are not cut where they were."""
        lap = place.lap + 1
        shift = random.Random(f"{self._seed} {lap}").randrange(self.length)
        return Place(lap, self.first, shift, 0, self.skipped["empty"], self.skipped["undecodable"])

    def _in_order(
        self, place: Place, keep_short: bool = False
    ) -> Iterator[tuple[np.ndarray, int, int, int, int]]:
        """Give rows with the document and offset that the next one begins at, and the counts of what was passed over till there."""
        parts: list[np.ndarray] = []
        missing = self.length
        for index, found in enumerate(self._corpus.read(place.document), start=place.document):
            if isinstance(found, Unusable):
                if not place.lap:
                    self.skipped[found.kind] += 1
                    self.first_skipped.setdefault(found.kind, found.where)
                continue
            ids, taken = self._encoder(found), place.offset if index == place.document else 0
            while len(ids) - taken >= missing:
                row_T = np.concatenate([*parts, ids[taken : taken + missing]])
                taken, parts, missing = taken + missing, [], self.length
                yield row_T, index, taken, self.skipped["empty"], self.skipped["undecodable"]
            if taken < len(ids):
                parts.append(ids[taken:])
                missing -= len(ids) - taken
        if keep_short and parts:
            yield np.concatenate(parts), 0, 0, 0, 0


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def collate(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Batch rows: `input_ids`, (B, T), and `places`, where the text goes on behind each."""
    ids_BT = torch.from_numpy(np.stack([row["input_ids"] for row in rows]))
    return {"input_ids": ids_BT, "places": torch.from_numpy(np.stack([row["place"] for row in rows]))}
