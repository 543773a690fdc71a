"""Texts that grow together: a step reads one token of each, and texts come and go between two steps.

A text that joins has its prompt read apart from the others. Then its rows of the cache are put below theirs,
all padded on the left, so that the last tokens stand in one column. Shapes in names: B rows, T tokens that a
pass reads, S tokens with those in the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from shadowpeft.decoder.joining import join, keep_rows
from shadowpeft.generate.choose import Choice, Chosen, choose


class Reader(Protocol):
    """What is asked of a model."""

    def new_cache(self) -> Cache:
        """Return an empty cache."""
        ...

    def read(self, ids_BT: Tensor, mask_BS: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """Read tokens behind those in the cache; return the logits behind the last ones, (B, V)."""
        ...


@dataclass(eq=False)
class Row:
    """One text.

    Attributes:
        prompt: its first ids, at least one.
        choice: how its tokens are chosen.
        finished: set by the caller: the row leaves before the next step.
    """

    prompt: Sequence[int]
    choice: Choice = field(default_factory=Choice)
    finished: bool = False


class Batch:
    """The rows that are written at present, of one model.

    Args:
        reader: the model.
        device: where it is.

    Attributes:
        rows: the rows, in the order of the cache's.
    """

    def __init__(self, reader: Reader, device: torch.device) -> None:
        self._reader, self._device = reader, device
        self._clear()

    def _clear(self) -> None:
        self.rows: list[Row] = []
        self._cache: Cache | None = None
        # Of all tokens in the cache, and the token of each row that is read next, with its position.
        self._mask_BS = torch.zeros(0, 0, dtype=torch.long, device=self._device)
        self._next_B1 = self._positions_B1 = torch.zeros(0, 1, dtype=torch.long, device=self._device)

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> list[Chosen]:
        """Read the prompts of new rows; return the first token of each."""
        longest = max(len(row.prompt) for row in rows)
        ids = [[0] * (longest - len(row.prompt)) + list(row.prompt) for row in rows]
        mask = [[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        ids_BT, mask_BT = (torch.tensor(part, device=self._device) for part in (ids, mask))
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        cache = self._reader.new_cache()
        logits_BV = self._reader.read(ids_BT, mask_BT, positions_BT, cache)
        chosen = choose(logits_BV, [row.choice for row in rows])
        self._take_in(rows, cache, mask_BT, positions_BT[:, -1:] + 1, self._column(chosen))
        return chosen

    @torch.inference_mode()
    def step(self) -> list[Chosen]:
        """Let each row grow by a token; return the tokens."""
        assert self._cache is not None
        self._mask_BS = F.pad(self._mask_BS, (0, 1), value=1)
        logits_BV = self._reader.read(self._next_B1, self._mask_BS, self._positions_B1, self._cache)
        chosen = choose(logits_BV, [row.choice for row in self.rows])
        self._next_B1, self._positions_B1 = self._column(chosen), self._positions_B1 + 1
        return chosen

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Take the finished rows out, and the padding that is then before all others."""
        stay = [index for index, row in enumerate(self.rows) if not row.finished]
        if len(stay) == len(self.rows):
            return
        if not stay:
            self._clear()
            return
        assert self._cache is not None
        stay_B = torch.tensor(stay, device=self._device)
        mask_BS = self._mask_BS[stay_B]
        padding = int((mask_BS.cumsum(-1) == 0).sum(-1).min())
        keep_rows(self._cache, stay_B, padding)
        self._mask_BS = mask_BS[:, padding:]
        self._next_B1, self._positions_B1 = self._next_B1[stay_B], self._positions_B1[stay_B]
        self.rows = [self.rows[index] for index in stay]

    def _take_in(
        self, rows: Sequence[Row], cache: Cache, mask_BS: Tensor, positions_B1: Tensor, next_B1: Tensor
    ) -> None:
        """Put rows below those that are there."""
        if self._cache is None:
            self.rows, self._cache = list(rows), cache
            self._mask_BS, self._positions_B1, self._next_B1 = mask_BS, positions_B1, next_B1
            return
        join(self._cache, cache)
        length = max(self._mask_BS.shape[1], mask_BS.shape[1])
        both = [F.pad(mask, (length - mask.shape[1], 0)) for mask in (self._mask_BS, mask_BS)]
        self._mask_BS = torch.cat(both)
        self._positions_B1 = torch.cat([self._positions_B1, positions_B1])
        self._next_B1 = torch.cat([self._next_B1, next_B1])
        self.rows += rows

    def _column(self, chosen: Sequence[Chosen]) -> Tensor:
        return torch.tensor([[each.token] for each in chosen], device=self._device)
