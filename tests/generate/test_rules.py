"""What is taken from a distribution."""

import pytest
import torch
from helpers.drafts import p_value
from torch import Tensor

from shadowpeft.generate.rules import Draft, Greedy, Sampled

P = torch.tensor([[0.5, 0.3, 0.2, 0.0]])
Q = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
DRAWN = 6000


def drawn(p_1V: Tensor, q_1V: Tensor) -> tuple[Tensor, Tensor]:
    """Draw many tokens by way of drafts; return how often each came, and how often it was its draft."""
    torch.manual_seed(0)
    rule, counts_V, taken_V = Sampled(), torch.zeros(4), torch.zeros(4)
    for _ in range(DRAWN):
        token_11, is_draft = rule.answer(p_1V.log(), rule.draft(q_1V.log()))
        counts_V[token_11] += 1
        taken_V[token_11] += is_draft
    return counts_V, taken_V


def test_greedy_takes_the_draft_that_is_likeliest() -> None:
    """Catches a draft that is taken although it is not the likeliest, or the other way round."""
    scores_1V, rule = torch.tensor([[0.0, 2.0, 1.0]]), Greedy()
    assert rule.draft(scores_1V).token_11.tolist() == [[1]]
    for token, is_draft in ((1, True), (2, False)):
        found = rule.answer(scores_1V, Draft(torch.tensor([[token]]), None))
        assert (found[0].tolist(), found[1]) == ([[1]], is_draft)
    assert rule.answer(scores_1V, None)[1] is False


def test_sampled_tokens_are_distributed_as_the_base_has_it() -> None:
    """Catches a residual that is left out: tokens would then come as p where a draft is rejected, too."""
    counts_V, taken_V = drawn(P, Q)
    assert counts_V[3] == 0
    assert p_value(counts_V, DRAWN * P[0]) > 0.01
    # min(p, q) of all draws are drafts that were taken.
    both = torch.minimum(P, Q)[0]
    assert (
        p_value(
            torch.cat([taken_V, DRAWN - taken_V.sum()[None]]), DRAWN * torch.cat([both, 1 - both.sum()[None]])
        )
        > 0.01
    )


def test_without_the_residual_the_distribution_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: sampling p itself after a rejection is told apart."""
    monkeypatch.setattr(Tensor, "__sub__", lambda self, other: self)
    counts_V, _ = drawn(P, Q)
    monkeypatch.undo()
    assert p_value(counts_V, DRAWN * P[0]) < 1e-6


def test_equal_distributions_reject_nothing() -> None:
    """Catches a residual of rounding errors that is drawn from."""
    _, taken_V = drawn(P, P)
    assert taken_V.sum() == DRAWN


def test_without_a_draft_it_samples_as_transformers_does() -> None:
    """Catches another use of random numbers where nothing is drafted."""
    torch.manual_seed(3)
    token_11, is_draft = Sampled().answer(P.log(), None)
    torch.manual_seed(3)
    assert torch.equal(token_11, torch.multinomial(P.log().softmax(-1), 1))
    assert not is_draft
