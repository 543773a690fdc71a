"""Trials beyond a grid."""

from dataclasses import replace

import pytest
from helpers.noted_cells import go, measured, ok, written

from shadowpeft.compare import choice, records, schedule
from shadowpeft.compare.choice import Edge, edges
from shadowpeft.compare.extension import searched
from shadowpeft.compare.ledger import Ledger

RATES = (1e-3, 2e-3, 4e-3)


def grid(small, lora, shadow=RATES, **changes):
    """A study of two methods on one task, with these learning rates."""
    search = {
        "lora": [{"learning_rate": rate} for rate in lora],
        "shadow": [{"learning_rate": rate, "alpha": 0.3} for rate in shadow],
    }
    settings = {"methods": "lora,shadow", "tasks": "clinc150", "trials": len(lora), "search": search}
    return replace(small, **settings, **{"extensions": 1, **changes})


def scored(study, best: dict[str, float], rows=(), failed=()) -> list[dict]:
    """Records of all trials that are known: the nearer a rate is to the best one, the better."""
    known = {row["key"] for row in rows}
    return [
        *rows,
        *(
            ok(cell, -abs(cell.learning_rate - best[cell.method]), status="crashed" if at in failed else "ok")
            for at, cell in enumerate(schedule.search_cells(study, rows))
            if cell.key not in known
        ),
    ]


def added(study, rows) -> dict[str, list[float]]:
    return {
        method: [cell.learning_rate for cell in cells[study.trials :]]
        for (*_, method), cells in searched(study, rows).items()
    }


@pytest.mark.parametrize(
    ("lora", "best", "more"),
    [
        (RATES, {"lora": 2e-3, "shadow": 2e-3}, {"lora": [], "shadow": []}),
        # Beyond the edge by the grid's last step; beside it, nearer to the better neighbour.
        (RATES, {"lora": 4e-3, "shadow": 2.1e-3}, {"lora": [8e-3], "shadow": [1.41e-3]}),
        (RATES, {"lora": 1e-3, "shadow": 2.9e-3}, {"lora": [5e-4], "shadow": [2.83e-3]}),
        ((1e-4, 3e-4, 1e-3), {"lora": 1e-2, "shadow": 1e-2}, {"lora": [3.33e-3], "shadow": [8e-3]}),
        # A grid of one rate.
        ((2e-3,), {"lora": 2e-3, "shadow": 2e-3}, {"lora": [], "shadow": []}),
        # The last step at either end of an uneven grid, and the neighbours alone in a long one.
        ((1e-4, 5e-4, 1e-3), {"lora": 0, "shadow": 2e-3}, {"lora": [2e-5], "shadow": [1.41e-3]}),
        (
            (1e-4, 2e-4, 3e-4, 4e-4, 5e-4),
            {"lora": 2.1e-4, "shadow": 2e-2},
            {"lora": [2.45e-4], "shadow": [3.2e-2]},
        ),
    ],
)
def test_where_one_is_at_the_edge_every_method_gets_one_more(small, lora, best, more):
    """Catches a search of unequal length, a step the wrong way, and a grid that is extended for nothing."""
    shadow = (*RATES, 8e-3, 1.6e-2)[: len(lora)]
    study = grid(small, lora, shadow)
    rows = scored(study, best)
    assert added(study, rows) == more
    assert added(replace(study, extensions=0), rows) == {"lora": [], "shadow": []}


def test_the_settings_beside_the_rate_are_the_best_ones(small):
    search = {
        "lora": [{"learning_rate": 1e-3, "head_learning_rate": 3e-3}, {"learning_rate": 2e-3}],
        "shadow": [{"learning_rate": 1e-3, "alpha": alpha} for alpha in (0.3, 0.6)],
    }
    study = replace(grid(small, RATES[:2], RATES[:2]), search=search)
    rows = [
        ok(cell, 0.9 if (cell.alpha == 0.6 or cell.head_learning_rate) else 0.1)
        for cell in schedule.search_cells(study, [])
    ]
    lora, shadow = (cells[-1].setting for cells in searched(study, rows).values())
    assert (lora.learning_rate, lora.head_learning_rate) == (5e-4, 3e-3)
    # One rate alone has no edge; it gets its trial all the same.
    assert (shadow.learning_rate, shadow.alpha) == (5e-4, 0.6)


def test_a_tie_is_at_no_edge(small):
    """Catches a step to one side where the other is as good, and a neighbour beyond the end of the grid."""
    study = grid(small, RATES)
    values = {("lora", 1e-3): 0.5, ("lora", 2e-3): 0.4, ("lora", 4e-3): 0.5}
    cells = schedule.search_cells(study, [])
    rows = [ok(cell, values.get((cell.method, cell.learning_rate), cell.learning_rate)) for cell in cells]
    assert added(study, rows) == {"lora": [1.41e-3], "shadow": [8e-3]}
    rows = [row if row["method"] == "lora" else {**row, "value": 0.1} for row in rows]
    assert added(study, rows) == {"lora": [], "shadow": []}


@pytest.mark.parametrize(("value", "chosen"), [(0.59, 1e-3), (0.61, 5e-4)])
def test_below_the_grid_only_the_best_value_wins(small, value, chosen):
    """Catches the lowest rate that wins every tie once the grid goes down to it."""
    study = grid(small, RATES, tie_standard_errors=1.0)
    rows = [
        ok(cell, 0.6 if cell.learning_rate == 1e-3 else 0.2, items=100)
        for cell in schedule.search_cells(study, [])
    ]
    rows += [ok(cell, value, items=100) for cell in schedule.search_cells(study, rows)[len(rows) :]]
    assert {setting.learning_rate for setting in choice.choices(study, rows).values()} == {chosen}


def test_nothing_is_added_before_all_trials_of_the_place_have_run(small):
    """Catches a trial that depends on which of two processes was faster."""
    study = grid(small, RATES)
    rows = scored(study, {"lora": 4e-3, "shadow": 2e-3})
    for left_out in range(len(rows)):
        assert added(study, [*rows[:left_out], *rows[left_out + 1 :]]) == {"lora": [], "shadow": []}


def test_as_many_steps_as_the_study_allows(small):
    """Catches a search without end, and one whose second step goes from where the first began."""
    study = grid(small, RATES, extensions=3)
    best = {"lora": 1.5e-2, "shadow": 2e-3}
    rows: list[dict] = []
    while len(more := scored(study, best, rows)) > len(rows):
        rows = more
    # 8e-3 is the best and the highest, then 16e-3; 32e-3 is worse.
    assert added(study, rows)["lora"] == [8e-3, 1.6e-2, 3.2e-2]
    assert len(added(study, rows)["shadow"]) == 3
    assert edges(study, rows) == []
    assert choice.choices(study, rows)[study.model, "clinc150", "lora"].learning_rate == 1.6e-2


def test_a_rate_at_which_a_run_failed_is_no_edge_to_go_beyond(small):
    """Catches a step up from the rates at which runs diverge."""
    study = grid(small, RATES)
    highest = [cell.learning_rate for cell in schedule.search_cells(study, [])].index(4e-3)
    rows = scored(study, {"lora": 2.9e-3, "shadow": 2e-3}, failed=(highest,))
    assert added(study, rows) == {"lora": [], "shadow": []}


def test_where_all_failed_the_next_rate_is_lower(small):
    study = grid(small, RATES)
    cells = schedule.search_cells(study, [])
    failed = [at for at, cell in enumerate(cells) if cell.method == "lora"]
    rows = scored(study, {"lora": 0, "shadow": 9e-3}, failed=failed)
    assert added(study, rows) == {"lora": [5e-4], "shadow": [8e-3]}


def test_beside_neighbours_that_failed(small):
    """Catches a step that needs a neighbour's value."""
    study = grid(small, RATES)
    cells = schedule.search_cells(study, [])
    rows = [
        ok(cell, cell.learning_rate)
        if cell.method == "shadow" or cell.learning_rate == 2e-3
        else records.failed(cell, "crashed", "")[0]
        for cell in cells
    ]
    assert added(study, rows) == {"lora": [1.41e-3], "shadow": [8e-3]}


def test_a_rate_that_rounds_to_one_that_was_tried(small):
    """Catches a trial that is taken for another one and never runs."""
    study = grid(small, (1e-3, 1.001e-3, 2e-3))
    rows = scored(study, {"lora": 1.001e-3, "shadow": 9e-3})
    ((rate,), _) = added(study, rows).values()
    assert 1e-3 < rate < 1.001e-3
    assert len({cell.key for cells in searched(study, rows).values() for cell in cells}) == 8


def test_what_is_not_trained_is_not_searched_further(small):
    """Catches a base that is answered untrained among the methods of an extended task."""
    study = replace(small, extensions=1, tasks="gsm8k", methods="base,lora")
    rows = [ok(cell, cell.learning_rate, metric="loss") for cell in schedule.search_cells(study, [])]
    found = searched(study, rows)
    assert [len(cells) for cells in found.values()] == [0, 3]


def test_finalists_are_chosen_among_all_that_was_tried(small):
    """Catches second runs before the grid is extended, and an extension that cannot be a finalist."""
    study = grid(small, RATES, finalists=2, tie_standard_errors=0)
    best = {"lora": 1.0, "shadow": 2e-3}
    rows = scored(study, best)
    assert {cell.seed for cell in schedule.ready(study, rows)} == {1000}
    rows = scored(study, best, rows)
    finalists = schedule.finalist_cells(study, rows)
    assert [cell.learning_rate for cell in finalists if cell.method == "lora"] == [8e-3, 4e-3]
    assert {cell.seed for cell in schedule.ready(study, rows)} == {1001}
    # Told is the edge of what both seeds say is best.
    second = {8e-3: -2.0, 4e-3: 0.0}
    rows += [ok(cell, second.get(cell.learning_rate, 0.0)) for cell in finalists]
    assert edges(study, rows) == []


def test_a_failed_trial_stays_once_others_followed_from_it(small):
    """Catches trials that ran and count no more, since one before them got another value."""
    study = grid(small, RATES)
    with Ledger(study) as kept:
        for cell in schedule.ready(study, []):
            fails = cell.method == "lora" and cell.learning_rate == 4e-3
            failed = records.failed(cell, "crashed", "")
            kept.write(cell, failed if fails else [ok(cell, cell.learning_rate)], "cpu")
        count = len(kept.records)
        kept.forget_failures()
        assert len(kept.records) == count - 1, "nothing has followed yet"
        (again,) = schedule.ready(study, kept.records)
        kept.write(again, records.failed(again, "crashed", ""), "cpu")
        further = schedule.ready(study, kept.records)
        assert {cell.stage for cell in further} == {"search"}
        for cell in further:
            kept.write(cell, [ok(cell, 0.5)], "cpu")
        count = len(kept.records)
        kept.forget_failures()
        assert len(kept.records) == count
        assert {cell.stage for cell in schedule.ready(study, kept.records)} == {"final"}


def test_a_best_rate_still_at_the_edge_is_told(small):
    """Catches a table whose first line is silent on a grid that was too narrow."""
    study = grid(small, RATES)
    best = {"lora": 1.0, "shadow": 2e-3}
    rows = scored(study, best)
    assert edges(study, rows) == [], "a step is left"
    waiting = next(row for row in rows if row["method"] == "shadow")
    assert edges(study, [row for row in rows if row is not waiting]) == [], "and while another method waits"
    rows = scored(study, best, rows)
    assert edges(study, rows) == [Edge(study.model, "clinc150", "lora", "highest", 8e-3)]


def test_a_study_runs_the_trials_that_extend_it(small):
    """Catches final runs of a setting that the extension has beaten, and an extension that is never run."""
    study = replace(small, extensions=1, methods="lora,shadow", tie_standard_errors=0)
    result = go(study, measured)
    rows = written(study)
    trials = [row for row in rows if row["stage"] == "search" and row["mode"] == "attached"]
    assert len(trials) == 2 * 2 * 3
    # The higher the rate, the better the stand-in; LoRA's rates were 3e-4 and 5e-4, and gsm8k is a loss.
    finals = {(row["task"], row["method"], row["learning_rate"]) for row in rows if row["stage"] == "final"}
    assert finals == {
        ("clinc150", "lora", 8.33e-4), ("gsm8k", "lora", 1.8e-4),
        ("clinc150", "shadow", 4e-3), ("gsm8k", "shadow", 5e-4),
    }  # fmt: skip
    assert (result.done, result.waiting, result.missing) == (result.cells, {}, [])
    assert {(at.task, at.method, at.side) for at in result.at_edge} == {
        ("clinc150", "lora", "highest"), ("gsm8k", "lora", "lowest"),
        ("clinc150", "shadow", "highest"), ("gsm8k", "shadow", "lowest"),
    }  # fmt: skip
