"""What the search of a study chooses: by one seed or two, and among ties."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.noted_cells import (
    ok,
    second_run,
)

from shadowpeft.cli import _parser
from shadowpeft.cli import compare as verb
from shadowpeft.compare import choice, records, schedule
from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.search_space import METHODS
from shadowpeft.compare.study import Study
from shadowpeft.embedded import MODEL


def test_the_best_validation_value_is_chosen(small):
    """Catches accuracy minimised, loss maximised, ties that go to the later trial, and a detached row that
    decides."""
    small = replace(small, tie_standard_errors=0)
    lora = [
        cell for cell in schedule.search_cells(small, []) if (cell.task, cell.method) == ("clinc150", "lora")
    ]
    assert [cell.learning_rate for cell in lora] == [3e-4, 5e-4]
    place = (str(MODEL), "clinc150", "lora")

    def chosen(*rows: dict) -> tuple | None:
        setting = choice.choices(small, rows)[place]
        return None if setting is None else (setting.learning_rate, setting.alpha)

    first, second = lora
    assert chosen(ok(first, 0.5), ok(second, 0.7)) == (5e-4, None)
    assert chosen(ok(first, 0.5, metric="loss"), ok(second, 0.7, metric="loss")) == (3e-4, None)
    assert chosen(ok(second, 0.5), ok(first, 0.5)) == (3e-4, None)
    assert chosen(ok(first, 0.5), ok(second, 0.7), ok(first, 0.9, mode="detached")) == (5e-4, None)
    assert chosen(ok(first, float("nan")), ok(second, 0.1)) == (5e-4, None)
    assert chosen(*records.failed(first, "crashed", ""), ok(second, 0.1)) == (5e-4, None)
    assert chosen(*records.failed(first, "crashed", ""), ok(second, None)) is None


@pytest.fixture
def twice(small) -> Study:
    """A study of one method that chooses between two finalists of three trials."""
    return replace(small, methods="lora", tasks="clinc150", trials=3, finalists=2, tie_standard_errors=0)


@pytest.mark.parametrize(
    ("firsts", "seconds", "metric", "chosen"),
    [
        (
            (0.7, 0.6, 0.2),
            {0: 0.1, 1: 0.6},
            "accuracy",
            1,
        ),  # the best of the first seed diverged on the second
        ((0.7, 0.6, 0.2), {0: 0.6, 1: 0.6}, "accuracy", 0),
        ((0.7, 0.6, 0.9), {2: 0.1, 0: 0.6}, "accuracy", 0),
        ((1.0, 2.0, 1.5), {0: 9.0, 2: 1.6}, "loss", 2),
        ((1.0, 2.0, 1.5), {0: 1.6, 2: 1.5}, "loss", 0),
        ((0.25, 0.75, 0.0), {0: 0.75, 1: 0.25}, "accuracy", 0),  # a tie
        (
            (0.7, 0.4, 0.2),
            {0: 0.1, 1: 0.4},
            "accuracy",
            0,
        ),  # a tie, though the sums differ in their last digit
        ((0.7, 0.6, 0.2), {0: float("nan"), 1: 0.1}, "accuracy", 1),
        ((0.7, 0.6, 0.2), {0: None, 1: 0.1}, "accuracy", 1),
        ((0.7, 0.6, 0.2), {0: "crashed", 1: 0.1}, "accuracy", 1),
        (
            (0.7, 0.6, 0.2),
            {0: "crashed", 1: float("inf")},
            "accuracy",
            0,
        ),  # none has both: the first seed decides
        ((0.6, 0.7, 0.2), {}, "accuracy", 1),
        (
            (0.7, 0.6, 0.5),
            {0: 0.5, 1: 0.5, 2: 1.0},
            "accuracy",
            0,
        ),  # a second run of no finalist, left by trials run again
        (("crashed", 0.6, 0.2), {1: 0.1, 2: 0.6}, "accuracy", 2),
    ],
)
def test_the_mean_of_both_seeds_chooses_among_finalists(twice, firsts, seconds, metric, chosen):
    """Catches a choice by either seed alone, a lost run counted as a good one, means read the wrong way
    round, and a choice of nothing."""
    trials = schedule.search_cells(twice, [])

    def run_of(cell: Cell, value: float | str | None) -> dict:
        return (
            records.failed(cell, value, "x")[0] if isinstance(value, str) else ok(cell, value, metric=metric)
        )

    rows = [run_of(trials[number], value) for number, value in enumerate(firsts)]
    rows += [run_of(second_run(trials[number]), value) for number, value in seconds.items()]
    assert set(choice.choices(twice, rows).values()) == {trials[chosen].setting}


def choose(study: Study, firsts: list[dict], seconds: dict[int, dict] | None = None) -> int:
    """Tell the number of the trial that a study of one place chooses; the rows come in any order."""
    trials = schedule.search_cells(study, [])
    rows = [ok(cell, **run) for cell, run in zip(trials, firsts, strict=True)]
    rows += [ok(second_run(trials[number]), **run) for number, run in (seconds or {}).items()]
    (chosen,) = choice.choices(study, rows[::-1]).values()
    return study.candidates(study.methods, study.tasks).index(chosen)


@pytest.fixture
def falling(small) -> Study:
    """A study of one method that chooses among three falling rates."""
    rates = [{"learning_rate": rate} for rate in (3e-3, 2e-3, 1e-3)]
    return replace(small, methods="lora", tasks="clinc150", trials=3, search={"lora": rates})


@pytest.mark.parametrize(
    ("width", "values", "chosen"),
    [
        (1, (0.5, 0.46, 0.44), 1),  # the standard error is 0.05
        (1, (0.5, 0.45, 0.3), 1),
        (1, (0.5, 0.46, 0.45), 2),
        (1, (0.44, 0.5, 0.46), 2),
        (1, (0.46, 0.44, 0.5), 2),
        (2, (0.5, 0.46, 0.41), 2),
        (0.5, (0.5, 0.47, 0.46), 0),
        (0, (0.5, 0.49, 0.5), 0),
        (1, (0.9, 0.88, 0.86), 1),  # 0.03: of the best one's share, not the widest that a share can have
    ],
)
def test_the_lowest_rate_of_a_tie_is_chosen(falling, width, values, chosen):
    """Catches the rate at the edge of stability, chosen for a tenth of a point that another seed takes back;
    and a tie too wide."""
    falling = replace(falling, tie_standard_errors=width)
    assert choose(falling, [{"value": value, "items": 100} for value in values]) == chosen
    # One rule for every method.
    for method in METHODS:
        plan = replace(falling, methods=method, search={method: falling.search["lora"]}, shadow_model="s")
        assert choose(plan, [{"value": value, "items": 100} for value in values]) == chosen


def test_a_tie_is_of_shares_whose_answers_are_known(falling):
    """Catches a standard error of a loss, or of answers nobody counted: there only equal values are a tie."""
    for unknown in ({"metric": "loss", "items": 100}, {"items": None}):
        best, worse = (0.5, 0.5001) if "metric" in unknown else (0.5, 0.4999)
        assert choose(falling, [{"value": value, **unknown} for value in (best, worse, worse)]) == 0
        assert choose(falling, [{"value": value, **unknown} for value in (best, best, worse)]) == 1
    assert choose(falling, [{"value": value, "items": 100} for value in (1.0, 0.99, 1.0)]) == 2


def test_within_a_rate_the_weaker_injection_is_chosen(falling):
    """Catches a tie of one rate that the stronger injection wins, a backbone's rate left out, and an order
    that is not the trials'."""

    def setting(rate: float, alpha: float, backbone: float | None = None) -> dict[str, float]:
        return {"learning_rate": rate, "alpha": alpha} | (
            {} if backbone is None else {"backbone_learning_rate": backbone}
        )

    for number, listed in (
        (1, [setting(1e-3, 1.0), setting(1e-3, 0.3), setting(2e-3, 0.1)]),
        (2, [setting(1e-3, 0.3), setting(1e-3, 0.3, 5e-3), setting(1e-3, 0.3, 1e-4)]),
        (0, [setting(1e-3, 0.3), setting(1e-3, 0.3, 1e-3), setting(1e-3, 0.3, 2e-3)]),
    ):
        plan = replace(falling, methods="shadow", search={"shadow": listed})
        assert choose(plan, [{"value": value, "items": 100} for value in (0.48, 0.49, 0.5)]) == number


def test_a_tie_of_two_seeds_is_narrower_and_of_finalists_alone(falling):
    """Catches a standard error of one seed for the mean of two, and a trial chosen that never ran from a
    second seed."""
    plan = replace(falling, finalists=2)
    firsts = [{"value": value, "items": 100} for value in (0.5, 0.49, 0.48)]
    assert schedule.finalist_cells(
        plan, [ok(cell, **run) for cell, run in zip(schedule.search_cells(plan, []), firsts, strict=True)]
    ) == [second_run(cell) for cell in schedule.search_cells(plan, [])[:2]], (
        "the best two, whatever their rates"
    )

    def level(value: float) -> dict[int, dict]:
        return {0: {"value": 0.5, "items": 100}, 1: {"value": value, "items": 100}}

    assert (
        choose(plan, firsts, level(0.45)) == 1
    )  # 0.47 against 0.5, whose standard error over 200 answers is 0.035
    assert choose(plan, firsts, level(0.43)) == 0  # 0.46: within 0.05, that of 100 answers
    assert choose(replace(plan, finalists=1), firsts) == 2
    assert choose(replace(plan, finalists=1), firsts, level(0.43)) == 2, "a second run that nobody asked for"


RECORDED = {"embedded": ["embedded"], "small_models": ["small-models"], "small_models_2": ["small-models-2"]}
LARGE = ["large-lora", "large-shadow"]


@pytest.mark.parametrize("recipe", [*RECORDED, "large_base"])
def test_recorded_studies_choose_what_they_chose(recipe):
    """Catches a study in results/ that, continued or repeated, would use other settings than it began
    with."""
    root = Path(__file__).parents[2]
    names = RECORDED.get(recipe, LARGE)
    paths = [path for name in names for path in (root / "results").rglob(f"compare-{name}.jsonl")]
    assert len(paths) == len(names)
    found = [record for path in paths for record in records.read(path)]
    final = {
        (record["model"], record["trained_on"], record["method"]): record
        for record in found
        if record["stage"] == "final"
    }
    files = [path.with_name("study.yaml") for path in paths if recipe in RECORDED]
    for file in (root / "recipes" / "compare" / f"{recipe}.yaml", *files):
        study = _parser.parse("compare", verb.run, ["--config", str(file)])["settings"]
        chosen = choice.choices(study, found)
        used = {place: Setting(record["learning_rate"], record["alpha"]) for place, record in final.items()}
        assert len(used) >= 4
        assert {place: chosen[place] for place in used} == used
