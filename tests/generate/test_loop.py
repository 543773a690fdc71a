"""The rounds, on two tables in the place of base and shadow. With models: tests/model/test_drafting.py."""

import itertools
from typing import Any

import pytest
import torch
from helpers.drafts import p_value
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import EosTokenCriteria, MaxLengthCriteria

from shadowpeft.generate import Past, Text, decode, first
from shadowpeft.generate.pace import Auto, Fixed, Pace
from shadowpeft.generate.report import DraftReport
from shadowpeft.generate.rules import Greedy, Rule, Sampled

VOCAB, LENGTH, DRAWN = 3, 5, 3000
# The next token by the last one. Greedily the base goes round, 0, 1, 2; the shadow is right twice of three.
BASE = torch.tensor([[0.3, 0.6, 0.1], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]).log()
SHADOW = torch.tensor([[0.2, 0.3, 0.5], [0.3, 0.3, 0.4], [0.5, 0.1, 0.4]]).log()


class Cache:
    """The ids that base and shadow have read."""

    def __init__(self) -> None:
        self.base: list[int] = []
        self.shadow: list[int] = []

    def get_seq_length(self) -> int:
        return len(self.base)

    def crop_to(self, tokens: int) -> None:
        del self.base[tokens:], self.shadow[tokens:]


class Tables:
    """A model whose logits follow from the last token, and that notes what it reads."""

    def __init__(self, shadow: Tensor = SHADOW) -> None:
        self._shadow = shadow

    def shadow(self, token_11: Tensor, past: Past, ahead: int) -> Tensor:
        cache: Any = past.cache
        assert len(cache.shadow) == past.position + ahead
        cache.shadow.append(int(token_11))
        return token_11[..., None].float()

    def head(self, s_11D: Tensor) -> Tensor:
        return self._shadow[int(s_11D)][None]

    def base(self, ids_1T: Tensor, s_1TD: Tensor, past: Past) -> Tensor:
        cache: Any = past.cache
        # s^(0) of the very tokens that are read, and the positions behind those that are cached.
        assert torch.equal(s_1TD[..., 0].long(), ids_1T)
        assert len(cache.base) == past.position
        cache.base += ids_1T[0].tolist()
        assert cache.base == cache.shadow
        return BASE[ids_1T]

    def round(self, token_11: Tensor, past: Past, tokens: int) -> tuple[Tensor, Tensor] | None:
        return None

    def room(self, past: Past) -> int | None:
        return None

    def renew(self, text: Text, past: Past) -> Past:
        return past


class AtOnce(Tables):
    """The same, whose rounds are one step each."""

    def round(self, token_11: Tensor, past: Past, tokens: int) -> tuple[Tensor, Tensor]:
        ids, states = [token_11], []
        for ahead in range(tokens):
            if ahead:
                ids.append(self.head(states[-1]).argmax(-1, keepdim=True))
            states.append(self.shadow(ids[-1], past, ahead))
        ids_1T = torch.cat(ids, 1)
        return ids_1T, self.base(ids_1T, torch.cat(states, 1), past)


def written(
    rule: Rule,
    pace: Pace,
    length: int = LENGTH,
    shadow: Tensor = SHADOW,
    end: int = VOCAB,
    kind: type[Tables] = Tables,
) -> tuple[list[int], Cache, DraftReport]:
    """Continue the text [0] to `length` ids."""
    config = GenerationConfig(max_length=length)
    criteria = StoppingCriteriaList([MaxLengthCriteria(length), EosTokenCriteria(end)])
    text = Text(torch.zeros(1, 1, dtype=torch.long), LogitsProcessorList(), criteria, None, config)
    cache: Any = Cache()
    cache.base, cache.shadow = [0], [0]
    first(text, BASE[0][None], rule)
    _, report = decode(kind(shadow), text, Past(cache, 1, 1, None, torch.device("cpu")), rule=rule, pace=pace)
    return text.ids_1T[0].tolist(), cache, report


def greedy(length: int) -> list[int]:
    ids = [0]
    while len(ids) < length:
        ids.append(int(BASE[ids[-1]].argmax()))
    return ids


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shadow", [SHADOW, BASE], ids=["often wrong", "always right"])
@pytest.mark.parametrize("kind", [Tables, AtOnce])
def test_greedy_texts_are_those_of_plain_decoding(tokens: int, shadow: Tensor, kind: type[Tables]) -> None:
    """Catches a draft that is compared with the answer to another position, and rejected tokens that stay."""
    ids, cache, report = written(Greedy(), Fixed(tokens), 20, shadow, kind=kind)
    assert ids == greedy(20)
    # All but the last token are read, by both.
    assert cache.base == cache.shadow == ids[:-1]
    assert report.tokens == 18
    if shadow is BASE:
        assert report.rounds == -(-18 // tokens)
        assert report.accepted == report.drafted


# A draft vocabulary without the token 1.
FEW = SHADOW.index_fill(1, torch.tensor([1]), -1e4)
PACES: dict[str, Any] = {
    "one": (lambda: Fixed(1), SHADOW), "three": (lambda: Fixed(3), SHADOW), "auto": (Auto, SHADOW),
    "few": (lambda: Fixed(3), FEW),
}  # fmt: skip


@pytest.mark.parametrize("name", PACES)
def test_sampled_texts_are_distributed_as_the_base_has_it(name: str) -> None:
    """Catches a residual that is left out, and a draft that is judged by another position's distribution."""
    pace, shadow = PACES[name]
    torch.manual_seed(0)
    places = {ids: place for place, ids in enumerate(itertools.product(range(VOCAB), repeat=LENGTH - 1))}
    counts, expected = torch.zeros(len(places)), torch.ones(len(places))
    for ids, place in places.items():
        for last, token in itertools.pairwise((0, *ids)):
            expected[place] *= BASE[last, token].exp()
    for _ in range(DRAWN):
        counts[places[tuple(written(Sampled(), pace(), shadow=shadow)[0][1:])]] += 1
    assert p_value(counts, DRAWN * expected) > 0.01


def test_the_shadow_reads_one_token_a_token_where_nothing_is_drafted() -> None:
    """Catches a second step of the shadow over a token that it has read."""
    _, _, report = written(Greedy(), Fixed(1), 20)
    assert (report.rounds, report.shadow_steps, report.drafted) == (18, 18, [])


def test_nothing_is_read_beyond_the_room() -> None:
    """Catches drafts behind the last token that may be added: their positions may not exist."""
    ids, _, report = written(Greedy(), Fixed(9), 4, shadow=BASE)
    assert len(ids) == 4
    assert (report.rounds, report.shadow_steps) == (1, 2)


def test_nothing_is_drafted_behind_an_end() -> None:
    """Catches drafts of what would never be written."""
    ids, cache, report = written(Greedy(), Fixed(9), 20, shadow=BASE, end=2)
    assert ids == [0, 1, 2]
    assert cache.base == cache.shadow == [0, 1]
    assert (report.rounds, report.shadow_steps, report.accepted) == (1, 2, [1])
