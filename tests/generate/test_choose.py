"""The next token of each row of a batch."""

import pytest
import torch
from helpers.drafts import p_value

from shadowpeft.generate.choose import Choice, choose

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]])
P = LOGITS.softmax(-1)[0]


def drawn(choice: Choice, rows: int = 4000) -> torch.Tensor:
    """How often each token is drawn."""
    tokens = [each.token for each in choose(LOGITS.repeat(rows, 1), [choice] * rows)]
    return torch.bincount(torch.tensor(tokens), minlength=5)


def test_tokens_are_drawn_as_often_as_the_model_says():
    """Catches a distribution that is shifted by a token, and one that top_p cuts although nobody asked."""
    counts = drawn(Choice(seed=1))
    assert counts[4] == 0
    assert p_value(counts, P * 4000) > 0.001
    hot = (LOGITS / 2).softmax(-1)[0]
    assert p_value(drawn(Choice(temperature=2, seed=1)), hot * 4000) > 0.001
    assert p_value(drawn(Choice(temperature=2, seed=1)), P * 4000) < 0.001


@pytest.mark.parametrize(("top_p", "kept"), [(0.6, 1), (0.7, 2), (0.95, 3), (0.0, 1)])
def test_top_p_keeps_the_likeliest(top_p, kept):
    counts = drawn(Choice(top_p=top_p, seed=2))
    want = torch.zeros(5)
    want[:kept] = P[:kept] / P[:kept].sum()
    assert counts[kept:].sum() == 0
    if kept > 1:
        assert p_value(counts, want * 4000) > 0.001


def test_each_row_has_settings_and_chance_of_its_own():
    """Catches a seed whose tokens depend on the rows beside it."""

    def tokens(*before: Choice) -> list[int]:
        choice = Choice(seed=5)
        return [choose(LOGITS.repeat(len(before) + 1, 1), [*before, choice])[-1].token for _ in range(30)]

    alone = tokens()
    assert len(set(alone)) > 1
    assert tokens(Choice(temperature=0), Choice(top_p=0.5, seed=9)) == alone
    greedy, sampled = choose(LOGITS.repeat(2, 1), [Choice(temperature=0), Choice(temperature=1e-9)])
    assert (greedy.token, sampled.token) == (0, 0)


def test_log_probabilities_are_of_the_model_itself():
    """Catches those of the tempered distribution, and rows that get what another one asked for."""
    choices = [Choice(temperature=0), Choice(temperature=5, top_p=0.1, top=2), Choice(temperature=0, top=0)]
    silent, told, few = choose(LOGITS.repeat(3, 1), choices)
    assert (silent.logprob, silent.top, silent.entropy) == (None, (), None)
    assert told.logprob == pytest.approx(P[0].log().item())
    assert told.top == (
        (0, pytest.approx(P[0].log().item())),
        (1, pytest.approx(P[1].log().item())),
    )
    assert told.entropy == pytest.approx(-(P[:4] * P[:4].log()).sum().item())
    assert few.top == ()
    assert few.logprob == told.logprob
