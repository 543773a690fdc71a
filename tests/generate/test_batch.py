"""Texts that grow together."""

import pytest
import torch
from helpers.families import TINY, attached, perturb, tiny_config, tiny_model, token_ids

from shadowpeft.arch import versions
from shadowpeft.decoder.cache import dynamic_cache
from shadowpeft.decoder.joining import can_join
from shadowpeft.generate.batch import Batch, Row
from shadowpeft.generate.choose import Choice

NEW = 12


class Reader:
    def __init__(self, model):
        self.model = model

    def new_cache(self):
        return self.model.new_cache()

    def read(self, ids_BT, mask_BS, positions_BT, cache):
        given = {versions.CACHE: cache}
        out = self.model(
            input_ids=ids_BT, attention_mask=mask_BS, position_ids=positions_BT, use_cache=True, **given
        )
        return out.logits[:, -1]


def alone(model, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()


def joins(family: str) -> bool:
    return can_join(dynamic_cache(tiny_config(family), tiny_config("llama"), "default"))


def test_most_families_join():
    """Catches a test below that is content with few."""
    assert sum(map(joins, TINY)) > 0.75 * len(TINY)


@pytest.mark.parametrize("family", list(filter(joins, sorted(TINY))))
def test_texts_that_come_and_go_are_as_each_alone(family):
    """Catches a row that reads another's cache, padding or position when rows come and go beside it."""
    model = perturb(attached(tiny_model(family))).eval()
    prompts = [token_ids(1, length, seed=length)[0].tolist() for length in (9, 3, 14, 1)]
    rows = [Row(prompt, Choice(temperature=0)) for prompt in prompts]
    written: dict[Row, list[int]] = {row: [] for row in rows}
    batch = Batch(Reader(model), torch.device("cpu"))

    def take(some, chosen):
        for row, each in zip(list(some), chosen, strict=True):
            written[row].append(each.token)
            row.finished = row.finished or len(written[row]) == NEW
        batch.drop_finished()

    take(rows[:2], batch.add(rows[:2]))
    for _ in range(3):
        take(batch.rows, batch.step())
    # The first one leaves early, as where a caller leaves; others come one after the other.
    rows[0].finished = True
    take(batch.rows, batch.step())
    take(rows[2:3], batch.add(rows[2:3]))
    take(batch.rows, batch.step())
    take(rows[3:], batch.add(rows[3:]))
    while batch.rows:
        take(batch.rows, batch.step())
    want = [alone(model, prompt) for prompt in prompts]
    assert [written[row] for row in rows] == [want[0][:5], *want[1:]]


def test_a_batch_that_was_empty_begins_afresh():
    """Catches padding and positions of rows that are gone."""
    model = perturb(attached(tiny_model("qwen3"))).eval()
    batch = Batch(Reader(model), torch.device("cpu"))
    for length in (9, 4):
        row = Row(token_ids(1, length, seed=length)[0].tolist(), Choice(temperature=0))
        tokens = [each.token for each in batch.add([row])]
        tokens += [batch.step()[0].token for _ in range(NEW - 1)]
        assert tokens == alone(model, list(row.prompt))
        row.finished = True
        batch.drop_finished()
        assert batch.rows == []
