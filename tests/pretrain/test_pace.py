"""The clock of a run and the learning rate that follows it."""

import time

import pytest

from shadowpeft.pretrain.pace import Pace, rate_factor


def test_rate_follows_the_schedule():
    """Catches a warm-up that is skipped or endless, and a schedule that does not end where it says."""
    pace = Pace(100, None)
    assert [rate_factor(pace, "linear", 0, step) for step in (0, 50, 100)] == [1.0, 0.5, 0.0]
    assert [rate_factor(pace, "constant", 4, step) for step in (0, 1, 3, 90)] == [0.25, 0.5, 1.0, 1.0]
    assert rate_factor(pace, "cosine", 0.1, 5) == pytest.approx(0.51)
    assert rate_factor(pace, "cosine", 0.1, 50) == pytest.approx(0.5)
    assert rate_factor(pace, "cosine", 0.1, 100) == pytest.approx(0.0)


def test_the_clock_counts_earlier_sessions(monkeypatch):
    """Catches a resumed run that trains its whole time again, or counts the time before its training."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(None, 10.0, before=4.0)
    now = 150.0
    pace.start()
    now = 153.0
    assert pace.seconds() == 7.0
    assert pace.share(step=10**6) == 0.7, "steps do not count"
    assert not pace.is_over()
    now = 156.0
    assert pace.is_over()
    now = 200.0
    assert pace.share(step=0) == 1.0


def test_steps_end_a_run_without_a_clock():
    """Catches a run of steps that the clock ends."""
    pace = Pace(4, None, before=1e9)
    assert [pace.share(step) for step in (0, 1, 4, 5)] == [0.0, 0.25, 1.0, 1.0]
    assert not pace.is_over()
