"""How long a draft is."""

import pytest
import torch

from shadowpeft.generate.pace import LOOK, MOST, NAP, Auto, Fixed, Mean

SURE = torch.tensor([[20.0, 0.0, 0.0]])
UNSURE = torch.zeros(1, 50)


def after_start(step: float = 1.0, base: float = 10.0) -> Auto:
    """Let the first rounds, which draft nothing, take their time."""
    pace = Auto()
    while pace.start() == 1:
        pace.note(1, 0, 0, 1, seconds=(step, base))
    return pace


def test_fixed_drafts_to_its_number() -> None:
    """Catches a number that is not kept to."""
    pace = Fixed(3)
    assert pace.start() == 3
    assert pace.goes_on(UNSURE)


def test_auto_begins_without_drafts_and_then_asks_the_shadow() -> None:
    """Catches a threshold without a measured price, and an unsure shadow that drafts."""
    pace = Auto()
    assert pace.start() == 1
    pace = after_start(step=1.0, base=10.0)
    assert pace.start() == MOST
    # A draft takes 1, a token 11.
    assert pace.threshold == pytest.approx(1 / 11)
    assert pace.goes_on(SURE)
    pace = after_start(step=20.0, base=10.0)
    assert pace.threshold == pytest.approx(20 / 30)
    assert not pace.goes_on(UNSURE)
    pace.start()
    assert pace.goes_on(SURE)


def test_the_chance_of_a_long_draft_is_that_of_all_its_tokens() -> None:
    """Catches chances that are not multiplied: a draft would go on for ever."""
    pace = after_start(step=2.0, base=10.0)
    pace.start()
    even = torch.zeros(1, 2)
    # A guess of 3/4 each, against a price of 1/6.
    assert [pace.goes_on(even) for _ in range(7)] == [True] * 6 + [False]


def test_a_dear_pass_of_more_tokens_raises_the_price() -> None:
    """Catches a price without what the base takes for one token more."""
    pace = after_start(step=1.0, base=10.0)
    before = pace.threshold
    pace.start()
    pace.note(3, 0, 0, 3, seconds=(3.0, 30.0))
    assert pace.threshold > 2 * before


def test_a_confident_shadow_that_is_wrong_loses_its_trust() -> None:
    """Catches a confidence that is not compared with what is taken."""
    pace = after_start(step=2.0, base=10.0)
    for _ in range(20):
        pace.start()
        if not pace.goes_on(SURE):
            return
        pace.note(2, 1, 0, 1, seconds=(4.0, 10.0))
    raise AssertionError("it drafts on, although nothing is ever taken")


def test_drafting_that_does_not_pay_pauses_for_longer_each_time() -> None:
    """Catches drafts without end where plain decoding is faster."""
    pace = after_start(step=1.0, base=10.0)
    for nap in (NAP, 2 * NAP):
        for _ in range(LOOK):
            assert pace.start() == MOST
            pace.note(2, 1, 0, 1, seconds=(2.0, 12.0))
        for _ in range(nap):
            assert pace.start() == 1
            pace.note(1, 0, 0, 1, seconds=(1.0, 10.0))
    assert pace.start() == MOST


def test_drafting_that_pays_goes_on() -> None:
    """Catches a pause in a faster text."""
    pace = after_start(step=1.0, base=10.0)
    for _ in range(5 * LOOK):
        assert pace.start() == MOST
        assert pace.goes_on(SURE)
        pace.note(2, 1, 1, 2, seconds=(2.0, 11.0))


def test_a_machine_that_stands_still_once_changes_little() -> None:
    """Catches one long time that is believed."""
    mean = Mean()
    for _ in range(10):
        mean.add_time(1.0)
    mean.add_time(1000.0)
    assert mean.value < 1.5
