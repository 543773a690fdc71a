"""How well drafting went."""

from shadowpeft.generate.report import DraftReport


def test_a_report_counts_by_position() -> None:
    """Catches counts of one position that end up in another."""
    report = DraftReport()
    assert (report.tokens_per_round, report.acceptance) == (0.0, [])
    report.add(drafted=1, accepted=0, tokens=1, shadow_steps=4)
    report.add(drafted=3, accepted=3, tokens=4, shadow_steps=4)
    report.add(drafted=2, accepted=1, tokens=2, shadow_steps=4)
    assert (report.rounds, report.tokens, report.shadow_steps) == (3, 7, 12)
    assert (report.drafted, report.accepted) == ([3, 2, 1], [2, 1, 1])
    assert report.acceptance == [2 / 3, 1 / 2, 1.0]
    assert report.tokens_per_round == 7 / 3
