"""Which cells a study has, and which run when."""

import itertools
from dataclasses import replace

from helpers.noted_cells import (
    called,
    go,
    ok,
    second_run,
    written,
)

from shadowpeft.cli import _parser
from shadowpeft.cli import compare as verb
from shadowpeft.compare import choice, schedule
from shadowpeft.compare.cell import Setting
from shadowpeft.compare.search_space import METHODS


def test_final_cells_wait_for_the_whole_search(small):
    """Catches a test split that is read while there is still something to choose."""
    rows: list[dict] = []
    stages = []
    while cells := schedule.ready(small, rows):
        assert len({cell.stage for cell in cells}) == 1
        stages.append((cells[0].stage, len(cells)))
        rows += [ok(cell, 0.5) for cell in cells[:-1]] or [ok(cells[0], 0.5)]
    assert [stage for stage, _ in stages] == sorted(
        (stage for stage, _ in stages), key=["search", "final", "cost"].index
    )
    # 2 tasks x 2 adapters x 2 trials and the base's head on one task; two seeds, but one of the untrained
    # base
    assert {stage: max(n for s, n in stages if s == stage) for stage, _ in stages} == {
        "search": 10,
        "final": 11,
        "cost": 6,
    }
    assert {row["key"] for row in rows} == {cell.key for cell in schedule.expected(small, rows)}


def test_ranks_and_seeds_of_the_final_cells(small):
    """Catches full fine-tuning run again for every rank, and an untrained base for every seed."""
    settings = replace(small, methods="base,lora,full", ranks="4,8")
    cells = schedule.final_cells(settings, choice.choices(settings, []))
    counts = {
        (t, m): sum((c.task, c.method) == (t, m) for c in cells)
        for t in ("clinc150", "gsm8k")
        for m in ("base", "lora", "full")
    }
    assert counts == {
        ("clinc150", "base"): 2, ("clinc150", "lora"): 4, ("clinc150", "full"): 2,
        ("gsm8k", "base"): 1, ("gsm8k", "lora"): 4, ("gsm8k", "full"): 2,
    }  # fmt: skip
    assert {cell.rank for cell in schedule.search_cells(settings, [])} == {4}


def test_every_place_has_its_first_run_before_any_has_its_second(small):
    """Catches a study that, stopped half way, has measured one method to the end and another not at all."""
    settings = replace(small, methods="lora,shadow,full", ranks="4,8", trials=3)
    places = [
        ("clinc150", "lora"),
        ("gsm8k", "lora"),
        ("clinc150", "shadow"),
        ("gsm8k", "shadow"),
        ("clinc150", "full"),
        ("gsm8k", "full"),
    ]
    trials = schedule.search_cells(settings, [])
    assert [(cell.task, cell.method) for cell in trials] == 3 * places
    tried = [settings.candidates("shadow", task) for task in ("clinc150", "gsm8k")]
    for number, both in enumerate(zip(*tried, strict=True)):
        assert [cell.setting for cell in trials[6 * number + 2 : 6 * number + 4]] == [*both]
    finals = schedule.final_cells(settings, choice.choices(settings, []))
    runs = [(cell.rank, cell.seed, cell.task, cell.method) for cell in finals]
    first, second = ([(seed, *place) for seed in (0, 1) for place in places[:count]] for count in (6, 4))
    assert runs == [(4, *run) for run in first] + [(8, *run) for run in second], "full is run at one rank"


def test_neighbours_differ_in_task(small):
    """Catches runs side by side that all need the most memory at once."""
    settings = replace(small, methods="lora,shadow,full")
    for cells in (
        schedule.search_cells(settings, []),
        schedule.final_cells(settings, choice.choices(settings, [])),
    ):
        assert all(one.task != other.task for one, other in itertools.pairwise(cells))


def test_finalists_run_again_when_all_trials_have_run(small):
    """Catches finalists taken before every trial is known, too many of them, worse ones, another seed, and a
    total that grows midway."""
    settings = replace(small, trials=3, finalists=2)
    trials = schedule.search_cells(settings, [])
    places = {(cell.task, cell.method) for cell in trials}
    assert ("gsm8k", "base") not in places, "nothing is trained there"
    total = len(schedule.expected(settings, []))
    assert total == len(trials) + 2 * len(places) + 11 + 6
    rows = [
        ok(cell, 0.5 + number // len(places) / 10) for number, cell in enumerate(trials)
    ]  # the last trial of each is its best
    for count in range(len(trials)):
        assert [cell.key for cell in schedule.ready(settings, rows[:count])] == [
            cell.key for cell in trials[count:]
        ]
        assert len({cell.key for cell in schedule.expected(settings, rows[:count])}) == total
    best = trials[2 * len(places) :] + trials[len(places) : 2 * len(places)]
    finalists = schedule.ready(settings, rows)
    assert finalists == [second_run(cell) for cell in best]
    assert {cell.stage for cell in finalists} == {"search"}
    assert {
        cell.stage for cell in schedule.ready(settings, [*rows, *(ok(cell, 0.5) for cell in finalists[:-1])])
    } == {"search"}
    rows += [ok(cell, 0.5) for cell in finalists]
    assert {cell.stage for cell in schedule.ready(settings, rows)} == {"final"}


def test_a_search_of_one_seed_has_no_second_runs(small):
    """Catches a study without the setting whose cells, order, names or choice are not what they were."""
    assert small.finalists == 1
    go(small)
    trials = [cell.key for cell in schedule.search_cells(small, [])]
    assert [key for key in called(small) if key.startswith("search")] == trials
    assert all("seed=1000 " in key for key in trials)
    rows = written(small)
    last = {method: small.candidates(method, "clinc150")[-1] for method in small.names("methods")}
    strays = [
        ok(second_run(cell), 9.0)
        for cell in schedule.search_cells(small, [])
        if cell.setting == last[cell.method]
    ]
    assert choice.choices(small, [*rows, *strays]) == choice.choices(small, rows)
    assert [cell.key for cell in schedule.expected(small, rows) if cell.stage == "search"] == trials


def test_every_method_gets_as_many_finalists(small):
    """Catches a method that is helped by more second runs than another."""
    settings = replace(
        small, methods=",".join(METHODS), tasks="clinc150", trials=3, finalists=2, shadow_model="s"
    )
    rows = [ok(cell, 0.5) for cell in schedule.search_cells(settings, [])]
    methods = [cell.method for cell in schedule.ready(settings, rows)]
    assert {method: methods.count(method) for method in METHODS} == dict.fromkeys(METHODS, 2)


def test_the_backbones_rate_goes_from_the_search_to_the_end(small, tmp_path):
    """Catches a second seed, a final run or a timing at one rate after a search that chose two, and a file
    that loses one of them."""
    coupling = {"learning_rate": 1e-3, "alpha": 0.3}
    listed = [
        coupling,
        {**coupling, "backbone_learning_rate": 1e-4},
        {**coupling, "backbone_learning_rate": 1e-5},
    ]
    plan = replace(
        small, methods="shadow", tasks="clinc150", trials=3, finalists=2, search={"shadow": listed}
    )
    (tmp_path / "study.yaml").write_text(plan.to_yaml(), encoding="utf-8")
    plan = _parser.parse("compare", verb.run, ["--config", str(tmp_path / "study.yaml")])["settings"]
    assert plan.candidates("shadow", "clinc150") == [
        Setting(1e-3, 0.3),
        Setting(1e-3, 0.3, 1e-4),
        Setting(1e-3, 0.3, 1e-5),
    ]
    trials = schedule.ready(plan, [])
    assert [cell.backbone_learning_rate for cell in trials] == [None, 1e-4, 1e-5]
    rows = [ok(cell, value) for cell, value in zip(trials, (0.5, 0.6, 0.7), strict=True)]
    seconds = schedule.ready(plan, rows)
    assert [(cell.seed, cell.setting) for cell in seconds] == [
        (1001, Setting(1e-3, 0.3, 1e-5)),
        (1001, Setting(1e-3, 0.3, 1e-4)),
    ]
    rows += [ok(cell, value) for cell, value in zip(seconds, (0.1, 0.6), strict=True)]
    for stage, count in (("final", 2), ("cost", 1)):
        cells = schedule.ready(plan, rows)
        assert [(cell.stage, cell.setting) for cell in cells] == count * [(stage, Setting(1e-3, 0.3, 1e-4))]
        rows += [ok(cell, 0.5) for cell in cells]
    assert schedule.ready(plan, rows) == []
