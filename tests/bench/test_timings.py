"""The measurement that the turns of a method make."""

import pytest
from helpers.benches import spec

from shadowpeft.bench.measure import Turn
from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.bench.timings import begin

FACTS = {"shape": "tiny", "batch": 2, "tokens": 50}


def test_all_steps_of_all_turns_count():
    """Catches a mean in place of the median, the spread of one turn, and another turn's loss or peak."""
    timings = begin(spec("lora"), TrainBench(), FACTS)
    timings.turns = [Turn([1.0, 2.0], loss=0.5, peak_gb=3.0), Turn([3.0, 4.0, 90.0], loss=0.25, peak_gb=2.0)]
    found = timings.measurement()
    assert (found["ms"], found["ms_spread"], found["peak_gb"], found["loss"]) == (3.0, 2.0, 3.0, 0.25)
    assert found["tokens_per_second"] == pytest.approx(1000 * 2 * 50 / 3.0)
    assert found["samples"] == [[1.0, 2.0], [3.0, 4.0, 90.0]]


def test_a_method_without_turns_has_its_facts_alone():
    """Catches a method that failed and leaves no line, or takes the run with it."""
    timings = begin(spec("shadow:reference"), Bench(variant="peft"), FACTS)
    timings.status = "out of memory"
    found = timings.measurement()
    assert (found["name"], found["impl"], found["variant"]) == ("shadow:reference", "reference", "peft")
    assert [found[name] for name in ("ms", "ms_spread", "tokens_per_second", "peak_gb", "loss")] == [None] * 5
    assert (found["samples"], found["status"]) == ([], "out of memory")
    assert begin(spec("lora"), Bench(variant="peft"), FACTS).measurement()["variant"] is None
