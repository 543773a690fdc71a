"""The head for drafts alone: a low-rank step from s^(0)."""

import torch

from shadowpeft.shadow.draft_head import DraftHead


def test_it_is_the_equation_and_starts_as_nothing() -> None:
    """Catches a fresh head that drafts otherwise than the shadow alone."""
    head, s_BTD = DraftHead(8, 3), torch.randn(2, 5, 8)
    assert torch.equal(head(s_BTD), s_BTD)
    assert head.rank == 3
    torch.nn.init.normal_(head.up.weight)
    wanted = s_BTD + s_BTD @ head.down.weight.T @ head.up.weight.T
    torch.testing.assert_close(head(s_BTD), wanted)


def test_it_computes_in_the_type_of_what_it_reads() -> None:
    """Catches a head in float32 beside a base in bfloat16 that widens the drafts, or cannot be multiplied."""
    head = DraftHead(8, 3)
    assert head(torch.randn(1, 1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for weight in head.parameters())
