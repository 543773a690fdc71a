"""The measurement that turns make."""

import pytest

from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.timings import CUT_OFF, Timings
from shadowpeft.bench.decode.ways import Turn
from shadowpeft.generate import DraftReport


def test_medians_of_all_texts():
    line = Timings(DecodeSpec("shadow", "triton"), {"batch": 8, "way": "graph"}, compile_seconds=5.0)
    line.turns = [Turn([2.0, 3.0], [10.0, 30.0], [100.0, 101.0]), Turn([4.0], [20.0], [102.0])]
    found = line.measurement()
    assert (found["ms_per_token"], found["first_token_ms"], found["call_ms"]) == (3.0, 20.0, 101.0)
    assert found["ms_spread"] == pytest.approx(1.0)
    assert found["tokens_per_second"] == pytest.approx(8000 / 3)
    assert found["samples"] == [[2.0, 3.0], [4.0]]
    assert (found["method"], found["impl"], found["name"], found["way"]) == (
        "shadow",
        "triton",
        "shadow:triton",
        "graph",
    )
    assert (found["draft_tokens"], found["tokens_per_round"], found["acceptance"]) == (None, None, None)
    assert found["compile_seconds"] == 5.0
    assert found["status"] == "ok"


def test_drafts_of_all_texts_count_together():
    """Catches a mean of shares, in which a short text weighs as much as a long one."""
    line = Timings(DecodeSpec("draft", "auto", 4), {"batch": 1})
    reports = [DraftReport(10, 20, 25, [10, 6], [8, 2]), DraftReport(10, 10, 12, [10], [0])]
    line.turns = [Turn([3.0], [1.0], [9.0], reports)]
    found = line.measurement()
    assert found["tokens_per_round"] == pytest.approx(1.5)
    assert found["ms_per_round"] == pytest.approx(4.5)
    assert found["acceptance"] == pytest.approx([8 / 20, 2 / 6])
    assert found["draft_tokens"] == 4


def test_nothing_measured_is_nothing():
    """Catches a zero in the place of a time."""
    line = Timings(DecodeSpec("base"), {"batch": 1}, status="out of memory")
    found = line.measurement()
    assert found["ms_per_token"] is found["tokens_per_second"] is found["first_token_ms"] is None
    assert found["status"] == "out of memory"
    assert line.cut_off()["status"] == CUT_OFF
