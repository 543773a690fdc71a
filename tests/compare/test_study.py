"""A study from its settings to its record: what is refused, what runs when, and what an interruption leaves."""

import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers.noted_cells import (
    TEXT,
    called,
    crowded,
    deadly,
    failing,
    go,
    interrupted,
    measured,
    no_report,
    record,
    slow,
    write,
    written,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig, cli
from shadowpeft.cli import _parser
from shadowpeft.cli import compare as verb
from shadowpeft.compare import checks, ledger, run, schedule, workers
from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.study import METHODS, SEARCH, SHADOWS, Study
from shadowpeft.compare.tasks import Source, find
from shadowpeft.compare.tasks.splits import squeezed
from shadowpeft.embedded import MODEL
from shadowpeft.errors import ConfigError, DataError, UserError
from shadowpeft.reporting import provenance

RECIPES = Path(__file__).parents[2] / "recipes" / "compare"


@pytest.fixture
def data(tmp_path) -> Path:
    """Tiny data sets in the layout of a data folder."""
    folder = tmp_path / "data"
    for number, split in enumerate(("train", "validation", "test")):
        requests = [{"text": f"request {number} {i}", "intent": ("alarm", "oos")[i % 2]} for i in range(4)]
        sums = [
            {"question": f"{number} + {i}?", "answer": f"Add.\n#### {number + i}", "final": str(number + i)}
            for i in range(30)
        ]
        write(folder / "clinc150" / f"{split}.jsonl", requests)
        if split != "validation":
            write(folder / "gsm8k" / f"{split}.jsonl", sums)
    write(folder / "wiki_en" / "validation.jsonl", [{"text": TEXT}])
    return folder


@pytest.fixture
def small(data, tmp_path) -> Study:
    settings = {
        "methods": "base,lora,shadow",
        "seeds": 2,
        "trials": 2,
        "data_dir": str(data),
        "ood": False,
        "device": "cpu",
    }
    return Study(str(MODEL), "clinc150,gsm8k", str(tmp_path / "out"), **settings)


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"methods": "lora,shadwo"},
            "there is no method 'shadwo' (did you mean 'shadow'?); the methods are: base, lora, dora",
        ),
        ({"tasks": "clinc"}, "'clinc' (did you mean 'clinc150'?)"),
        ({"seeds": 0}, "seeds must be a whole number, 1 or more, got 0"),
        ({"trials": 0}, "trials must be a whole number, 1 or more, got 0"),
        ({"finalists": 0}, "finalists must be a whole number, 1 or more, got 0"),
        (
            {"finalists": 5},
            "finalists must be 4 or less, the number of trials they are taken from, got 5; lower them or raise trials",
        ),
        (
            {"tie_standard_errors": -0.5},
            "tie_standard_errors must be 0 or more, got -0.5",
        ),
        (
            {"tie_standard_errors": float("nan")},
            "tie_standard_errors must be a finite number, 0 or more, got nan",
        ),
        (
            {"tie_standard_errors": float("inf")},
            "tie_standard_errors must be a finite number, 0 or more, got inf",
        ),
        ({"tie_standard_errors": True}, "tie_standard_errors must be a number, 0 or more, got True"),
        (
            {"test_skip": -1},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got -1",
        ),
        (
            {"test_skip": 2.5},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got 2.5",
        ),
        (
            {"test_skip": False},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got False",
        ),
        (
            {"test_skip": [5, 0]},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got [5, 0]",
        ),
        (
            {"test_skip": [5, 2.5]},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got [5, 2.5]",
        ),
        (
            {"test_skip": [True]},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got [True]",
        ),
        (
            {"test_skip": "5"},
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got '5'",
        ),
        ({"test_skip": None}, "test_skip must have a value, got null"),
        ({"test_skip": 2.5}, "got 2.5; where tasks differ, map their names to such values"),
        (
            {"test_skip": {"clinc": 5}},
            "test_skip names 'clinc', which is no task (did you mean 'clinc150'?); the tasks it can name here are: clinc150",
        ),
        (
            {"test_skip": {"mmlu": 5}},
            "test_skip names 'mmlu', which this study does not test; the tasks it can name here are: clinc150",
        ),
        (
            {"test_skip": {"mawps": 5}, "tasks": "gsm8k", "ood": False},
            "test_skip names 'mawps', which this study does not test; the tasks it can name here are: gsm8k",
        ),
        (
            {"test_skip": {1: 5}},
            "test_skip names 1, which is no task; the tasks it can name here are: clinc150",
        ),
        (
            {"test_skip": {"clinc150": -1}},
            "test_skip.clinc150 must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got -1",
        ),
        ({"test_skip": {"clinc150": [5, 0]}}, "or a list of whole numbers, 1 or more, got [5, 0]"),
        ({"test_skip": {"clinc150": None}}, "or a list of whole numbers, 1 or more, got None"),
        (
            {"test_skip": {"clinc150": {"gsm8k": 1}}},
            "or a list of whole numbers, 1 or more, got {'gsm8k': 1}",
        ),
        ({"workers": 0}, "workers must be a whole number, 1 or more, got 0"),
        ({"steps": 2.5}, "steps must be a whole number, 1 or more, got 2.5"),
        ({"trials": 9}, "trials must be 8 or less with the built-in settings, got 9"),
        ({"tasks": " ,"}, "tasks must name at least one, got ' ,'"),
        ({"methods": "lora,lora"}, "methods names lora twice"),
        ({"ranks": "8,big"}, "ranks must be whole numbers from 1 on, separated by commas, got 'big'"),
        ({"ranks": "0"}, "ranks must be whole numbers from 1 on, separated by commas, got '0'"),
        ({"device": "tpu"}, "device must be auto or cpu, got 'tpu'"),
        ({"name": "a/b"}, "name must be fit for a file's name, got 'a/b'"),
        ({"steps": None}, "steps must have a value, got null"),
        ({"methods": "shadow-explicit"}, "the method shadow-explicit needs shadow_model"),
        ({"overrides": {"lroa": {}}}, "there is no method 'lroa' (did you mean 'lora'?)"),
        ({"overrides": {"lora": 3}}, "overrides.lora must hold settings as 'name: value', got 3"),
        ({"search": {"lroa": []}}, "there is no method 'lroa' (did you mean 'lora'?)"),
        (
            {"search": {"lora": [{"learning_rate": 1e-3}]}},
            "every method gets the same number of trials: search.lora must list 4",
        ),
        (
            {"trials": 1, "search": {"lora": [{"learning_rat": 1e-3}]}},
            "search.lora must list settings such as {learning_rate: 0.001}",
        ),
        (
            {"trials": 1, "search": {"lora": [{"learning_rate": 1e-3, "alpha": 1}]}},
            "there is nothing to search called 'alpha'",
        ),
        (
            {"trials": 1, "search": {"shadow": [{"learning_rate": 1, "alhpa": 1}]}},
            "called 'alhpa' (did you mean 'alpha'?)",
        ),
        (
            {"trials": 1, "search": {"lora": [{"learning_rate": 0}]}},
            "learning_rate must be a number above 0, got 0",
        ),
        (
            {"trials": 2, "search": {"lora": [{"learning_rate": 1}, {"learning_rate": 1}]}},
            "twice; every trial must differ",
        ),
        (
            {
                "methods": "peft-shadow",
                "trials": 1,
                "search": {"peft-shadow": [{"learning_rate": 1, "backbone_learning_rate": 1}]},
            },
            "search.peft-shadow: backbone_learning_rate can be searched for shadow, shadow-paper, shadow-explicit alone; leave it out",
        ),
        (
            {"trials": 1, "search": {"lora": [{"learning_rate": 1, "backbone_learning_rate": 1}]}},
            "search.lora: backbone_learning_rate can be",
        ),
        (
            {"trials": 1, "search": {"shadow": [{"learning_rate": 1, "backbone_learning_rate": 0}]}},
            "search.shadow: backbone_learning_rate must be a number above 0, got 0",
        ),
        (
            {"trials": 1, "search": {"shadow": [{"learning_rate": 1, "backbone_learning_rat": 1}]}},
            "called 'backbone_learning_rat' (did you mean 'backbone_learning_rate'?)",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_are_checked(change, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Study(**{"model": "m", "tasks": "clinc150", "output": "o", **change})


def test_what_is_skipped_is_a_number_or_a_list(tmp_path):
    """Catches two ways to write the same rows that are two studies, and a list that the command line or a file does not take."""
    for given, kept, skips in (
        (0, 0, ()),
        ([], 0, ()),
        (5, 5, (5,)),
        ([5], 5, (5,)),
        ([5, 7], [5, 7], (5, 7)),
    ):
        settings = Study("m", "clinc150", "o", test_skip=given)
        assert (settings.test_skip, settings.skips_of("clinc150")) == (kept, skips)
        assert type(yaml.safe_load(settings.to_yaml())["test_skip"]) is type(kept), (
            "files from before there were lists hold a number"
        )
        (tmp_path / "study.yaml").write_text(settings.to_yaml())
        words = ["--model=m", "--tasks=clinc150", "--output=o"]
        for more in (
            ["--config", str(tmp_path / "study.yaml")],
            [*words, "--test-skip", str(given)],
            [*words, f"--test-skip={given}"],
        ):
            assert _parser.parse("compare", verb.run, more)["settings"] == settings
    for wrong in ("2.5", "true", "[5, 2.5]", "[5, true]"):
        got, mapping = re.escape(wrong.replace("5, true", "5, True")), re.escape("dict[str, int | list[int]]")
        with pytest.raises(
            ConfigError, match=f'^"test_skip": expected int or list\\[int\\] or {mapping}, got {got}$'
        ):
            _parser.parse("compare", verb.run, [*words, f"--test-skip={wrong}"])
    with pytest.raises(ConfigError, match=r'^"max_length": expected int or null, got long$'):
        _parser.parse("compare", verb.run, [*words, "--max-length=long"])


def test_what_is_skipped_may_differ_between_tasks(tmp_path):
    """Catches a mapping that the command line or a file does not take, that reaches other tasks, or that is not written plainly."""
    for given, kept, skips in (
        ({}, 0, ((), (), ())),
        ({"clinc150": 0, "mawps": []}, 0, ((), (), ())),
        ({"gsm8k": 5, "clinc150": [5], "mawps": 5}, 5, ((5,), (5,), (5,))),
        ({"gsm8k": [5, 7], "clinc150": [5, 7], "mawps": [5, 7]}, [5, 7], ((5, 7), (5, 7), (5, 7))),
        ({"gsm8k": 5, "clinc150": 5}, {"clinc150": 5, "gsm8k": 5}, ((5,), (5,), ())),
        (
            {"mawps": [7], "clinc150": [5, 7], "gsm8k": []},
            {"clinc150": [5, 7], "mawps": 7},
            ((5, 7), (), (7,)),
        ),
    ):
        settings = Study("m", "clinc150,gsm8k", "o", test_skip=given)
        assert settings.test_skip == kept
        assert tuple(map(settings.skips_of, ("clinc150", "gsm8k", "mawps"))) == skips
        (tmp_path / "written.yaml").write_text(settings.to_yaml())
        (tmp_path / "given.yaml").write_text(
            yaml.safe_dump({"model": "m", "tasks": "clinc150,gsm8k", "output": "o", "test_skip": given})
        )
        words = ["--model=m", "--tasks=clinc150,gsm8k", "--output=o", f"--test-skip={json.dumps(given)}"]
        for more in (
            ["--config", str(tmp_path / "written.yaml")],
            ["--config", str(tmp_path / "given.yaml")],
            words,
        ):
            assert _parser.parse("compare", verb.run, more)["settings"] == settings
    with pytest.raises(ConfigError, match=r"^\"test_skip\": expected .*, got {'gsm8k': 2.5}$"):
        _parser.parse("compare", verb.run, [*words, "--test-skip={gsm8k: 2.5}"])
    alone = replace(settings, tasks="gsm8k", ood=False, test_skip={"gsm8k": [5]})
    assert alone.test_skip == 5, "the only task it tests"


def test_every_method_gets_as_many_trials():
    """Catches a method with a longer list to choose from, which would win by luck."""
    for trials in (1, 4, 8):
        settings = Study("m", "clinc150", "o", methods=",".join(METHODS), trials=trials, shadow_model="s")
        for method in METHODS:
            tried = settings.candidates(method)
            assert len(set(tried)) == trials, method
            assert all((setting.alpha is None) == (method not in SHADOWS) for setting in tried)
            assert all(
                (setting.backbone_learning_rate is None) == (method != "shadow-explicit") for setting in tried
            )
    assert set(SEARCH) == set(METHODS)
    assert all(SEARCH[method][0][:2] == (1e-3, 0.1) for method in ("peft-shadow", "shadow-paper")), (
        "the published strength is always tried"
    )
    assert SEARCH["shadow"][0].alpha == ShadowConfig().resolved().alpha, "so is the default"


def test_study_file_repeats_the_study(small, tmp_path):
    """Catches a setting that is lost on the way through the file, and `search` read as groups of flags."""
    listed = replace(
        small,
        search={"lora": [{"learning_rate": 1e-3}, {"learning_rate": 0.5}]},
        overrides={"shadow": {"r": 8, "variant": "peft"}},
    )
    (tmp_path / "study.yaml").write_text(listed.to_yaml())
    values = _parser.parse("compare", verb.run, ["--config", str(tmp_path / "study.yaml")])
    assert values["settings"] == listed
    assert listed.name == "out"
    assert listed.candidates("lora") == [Setting(1e-3), Setting(0.5)]
    (tmp_path / "study.yaml").write_text("model: m\nsedes: 3\n")
    with pytest.raises(ConfigError, match=r"unknown setting 'sedes' \(did you mean 'seeds'\?\)"):
        _parser.parse("compare", verb.run, ["--config", str(tmp_path / "study.yaml")])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("ranks: 8", {"ranks": "8"}),
        ("ranks: [4, 8]", {"ranks": "4,8"}),
        ("ranks: ['4', 8]", {"ranks": "4,8"}),
        ("tasks: [gsm8k, clinc150]", {"tasks": "gsm8k,clinc150"}),
        ("tasks:\n- gsm8k\n- clinc150", {"tasks": "gsm8k,clinc150"}),
        ("methods: [lora]", {"methods": "lora"}),
        ("model: [a/b, c]", {"model": "a/b,c"}),
        (
            "search: {lora: [{learning_rate: 1e-3}]}\ntrials: 1",
            {"trials": 1, "search": {"lora": [{"learning_rate": 1e-3}]}},
        ),
        (
            "overrides: {lora: {target_modules: [a, b]}}",
            {"overrides": {"lora": {"target_modules": ["a", "b"]}}},
        ),
        ("test_skip: [1, 2]\nranks: 8", {"ranks": "8", "test_skip": [1, 2]}),
    ],
    ids=str,
)
def test_a_study_file_may_list_names(written, meant, tmp_path):
    """Catches the natural list, or a number of a rank, refused as no text; other lists and numbers taken for names."""
    plain = {"model": "m", "tasks": "clinc150", "output": "o"}
    given = "".join(f"{name}: {value}\n" for name, value in plain.items() if name not in meant)
    (tmp_path / "mine.yaml").write_text(given + written)
    values = _parser.parse("compare", verb.run, ["--config", str(tmp_path / "mine.yaml"), "--seeds", "2"])
    assert values["settings"] == Study(**{**plain, **meant, "seeds": 2})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("ranks: [4, 2.5]", '"ranks": expected str, got [4, 2.5]'),
        ("ranks: []", '"ranks": expected str, got []'),
        ("ranks: true", '"ranks": expected str, got True'),
        ("tasks: [[clinc150]]", "\"tasks\": expected str, got [['clinc150']]"),
        ("output: [o]", "\"output\": expected str, got ['o']"),
        ("tasks: [clinc150, clinc150]", "tasks names clinc150 twice"),
        ("device: cuda", "device must be auto or cpu, got 'cuda'; auto takes the GPUs, if there are any"),
    ],
)
def test_a_study_file_with_what_is_no_name(written, message, tmp_path):
    plain = {"model": "m", "tasks": "clinc150", "output": "o"}
    given = "".join(f"{name}: {value}\n" for name, value in plain.items() if not written.startswith(name))
    (tmp_path / "mine.yaml").write_text(given + written)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        _parser.parse("compare", verb.run, ["--config", str(tmp_path / "mine.yaml")])


def test_a_device_that_is_none_is_refused_in_plain_words():
    """Catches the parser's own words for a choice of two."""
    words = ["--model=m", "--tasks=clinc150", "--output=o"]
    with pytest.raises(
        ConfigError, match=r"^device must be auto or cpu, got 'cuda'; auto takes the GPUs, if there are any$"
    ):
        _parser.parse("compare", verb.run, [*words, "--device", "cuda"])
    with pytest.raises(
        ConfigError, match="needs shadow_model, --shadow on the command line: the folder or hub id"
    ):
        _parser.parse("compare", verb.run, [*words, "--methods", "shadow-explicit"])


# Schedule


def ok(cell: Cell, value: float | None, **changes) -> dict:
    return {**ledger.failed(cell, "ok", "")[0], "metric": "accuracy", "value": value, **changes}


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
    # 2 tasks x 2 adapters x 2 trials and the base's head on one task; two seeds, but one of the untrained base
    assert {stage: max(n for s, n in stages if s == stage) for stage, _ in stages} == {
        "search": 10,
        "final": 11,
        "cost": 6,
    }
    assert {row["key"] for row in rows} == {cell.key for cell in schedule.expected(small, rows)}


def test_the_best_validation_value_is_chosen(small):
    """Catches accuracy minimised, loss maximised, ties that go to the later trial, and a detached row that decides."""
    small = replace(small, tie_standard_errors=0)
    lora = [cell for cell in schedule.search_cells(small) if (cell.task, cell.method) == ("clinc150", "lora")]
    assert [cell.learning_rate for cell in lora] == [1e-3, 3e-4]
    place = (str(MODEL), "clinc150", "lora")

    def chosen(*rows: dict) -> tuple | None:
        setting = schedule.choices(small, rows)[place]
        return None if setting is None else (setting.learning_rate, setting.alpha)

    first, second = lora
    assert chosen(ok(first, 0.5), ok(second, 0.7)) == (3e-4, None)
    assert chosen(ok(first, 0.5, metric="loss"), ok(second, 0.7, metric="loss")) == (1e-3, None)
    assert chosen(ok(second, 0.5), ok(first, 0.5)) == (1e-3, None)
    assert chosen(ok(first, 0.5), ok(second, 0.7), ok(first, 0.9, mode="detached")) == (3e-4, None)
    assert chosen(ok(first, float("nan")), ok(second, 0.1)) == (3e-4, None)
    assert chosen(*ledger.failed(first, "crashed", ""), ok(second, 0.1)) == (3e-4, None)
    assert chosen(*ledger.failed(first, "crashed", ""), ok(second, None)) is None


def test_ranks_and_seeds_of_the_final_cells(small):
    """Catches full fine-tuning run again for every rank, and an untrained base for every seed."""
    settings = replace(small, methods="base,lora,full", ranks="4,8")
    cells = schedule.final_cells(settings, schedule.choices(settings, []))
    counts = {
        (t, m): sum((c.task, c.method) == (t, m) for c in cells)
        for t in ("clinc150", "gsm8k")
        for m in ("base", "lora", "full")
    }
    assert counts == {
        ("clinc150", "base"): 2, ("clinc150", "lora"): 4, ("clinc150", "full"): 2,
        ("gsm8k", "base"): 1, ("gsm8k", "lora"): 4, ("gsm8k", "full"): 2,
    }  # fmt: skip
    assert {cell.rank for cell in schedule.search_cells(settings)} == {4}


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
    trials = schedule.search_cells(settings)
    assert [(cell.task, cell.method) for cell in trials] == 3 * places
    for number, setting in enumerate(settings.candidates("shadow")):
        assert [cell.setting for cell in trials[6 * number + 2 : 6 * number + 4]] == 2 * [setting]
    finals = schedule.final_cells(settings, schedule.choices(settings, []))
    runs = [(cell.rank, cell.seed, cell.task, cell.method) for cell in finals]
    first, second = ([(seed, *place) for seed in (0, 1) for place in places[:count]] for count in (6, 4))
    assert runs == [(4, *run) for run in first] + [(8, *run) for run in second], "full is run at one rank"


def test_neighbours_differ_in_task(small):
    """Catches runs side by side that all need the most memory at once."""
    settings = replace(small, methods="lora,shadow,full")
    for cells in (
        schedule.search_cells(settings),
        schedule.final_cells(settings, schedule.choices(settings, [])),
    ):
        assert all(one.task != other.task for one, other in itertools.pairwise(cells))


# Second seeds of the search


@pytest.fixture
def twice(small) -> Study:
    """A study of one method that chooses between two finalists of three trials."""
    return replace(small, methods="lora", tasks="clinc150", trials=3, finalists=2, tie_standard_errors=0)


def second(cell: Cell) -> Cell:
    return replace(cell, seed=1001)


def test_finalists_run_again_when_all_trials_have_run(small):
    """Catches finalists taken before every trial is known, too many of them, worse ones, another seed, and a total that grows midway."""
    settings = replace(small, trials=3, finalists=2)
    trials = schedule.search_cells(settings)
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
    assert finalists == [second(cell) for cell in best]
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
    trials = [cell.key for cell in schedule.search_cells(small)]
    assert [key for key in called(small) if key.startswith("search")] == trials
    assert all("seed=1000 " in key for key in trials)
    rows = written(small)
    last = {method: small.candidates(method)[-1] for method in small.names("methods")}
    strays = [
        ok(second(cell), 9.0) for cell in schedule.search_cells(small) if cell.setting == last[cell.method]
    ]
    assert schedule.choices(small, [*rows, *strays]) == schedule.choices(small, rows)
    assert [cell.key for cell in schedule.expected(small, rows) if cell.stage == "search"] == trials


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
    """Catches a choice by either seed alone, a lost run counted as a good one, means read the wrong way round, and a choice of nothing."""
    trials = schedule.search_cells(twice)

    def run_of(cell: Cell, value: float | str | None) -> dict:
        return (
            ledger.failed(cell, value, "x")[0] if isinstance(value, str) else ok(cell, value, metric=metric)
        )

    rows = [run_of(trials[number], value) for number, value in enumerate(firsts)]
    rows += [run_of(second(trials[number]), value) for number, value in seconds.items()]
    assert set(schedule.choices(twice, rows).values()) == {trials[chosen].setting}


# Ties: the one-standard-error rule


def choose(study: Study, firsts: list[dict], seconds: dict[int, dict] | None = None) -> int:
    """Tell the number of the trial that a study of one place chooses; the rows come in any order."""
    trials = schedule.search_cells(study)
    rows = [ok(cell, **run) for cell, run in zip(trials, firsts, strict=True)]
    rows += [ok(second(trials[number]), **run) for number, run in (seconds or {}).items()]
    (chosen,) = schedule.choices(study, rows[::-1]).values()
    return study.candidates(study.methods).index(chosen)


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
    """Catches the rate at the edge of stability, chosen for a tenth of a point that another seed takes back; and a tie too wide."""
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
    """Catches a tie of one rate that the stronger injection wins, a backbone's rate left out, and an order that is not the trials'."""

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
    """Catches a standard error of one seed for the mean of two, and a trial chosen that never ran from a second seed."""
    plan = replace(falling, finalists=2)
    firsts = [{"value": value, "items": 100} for value in (0.5, 0.49, 0.48)]
    assert schedule.finalist_cells(
        plan, [ok(cell, **run) for cell, run in zip(schedule.search_cells(plan), firsts, strict=True)]
    ) == [second(cell) for cell in schedule.search_cells(plan)[:2]], "the best two, whatever their rates"

    def level(value: float) -> dict[int, dict]:
        return {0: {"value": 0.5, "items": 100}, 1: {"value": value, "items": 100}}

    assert (
        choose(plan, firsts, level(0.45)) == 1
    )  # 0.47 against 0.5, whose standard error over 200 answers is 0.035
    assert choose(plan, firsts, level(0.43)) == 0  # 0.46: within 0.05, that of 100 answers
    assert choose(replace(plan, finalists=1), firsts) == 2
    assert choose(replace(plan, finalists=1), firsts, level(0.43)) == 2, "a second run that nobody asked for"


RECORDS = {"embedded": ["embedded"], "small_models": ["small-models"], "small_models_2": ["small-models-2"]}


@pytest.mark.parametrize("recipe", [*RECORDS, "large_base"])
def test_recorded_studies_choose_what_they_chose(recipe):
    """Catches a study in results/ that, gone on with or repeated, would go on with other settings than it began with."""
    root = Path(__file__).parents[2]
    records = RECORDS.get(recipe, ["large-lora", "large-shadow"])
    paths = [path for name in records for path in (root / "results").rglob(f"compare-{name}.jsonl")]
    assert len(paths) == len(records)
    rows = [row for path in paths for row in ledger.read(path)]
    final = {(row["model"], row["trained_on"], row["method"]): row for row in rows if row["stage"] == "final"}
    files = [path.with_name("study.yaml") for path in paths if recipe in RECORDS]
    for file in (root / "recipes" / "compare" / f"{recipe}.yaml", *files):
        chosen = schedule.choices(
            _parser.parse("compare", verb.run, ["--config", str(file)])["settings"], rows
        )
        used = {place: (row["learning_rate"], row["alpha"], None) for place, row in final.items()}
        assert len(used) >= 4
        assert {place: chosen[place] for place in used} == used


def test_every_method_gets_as_many_finalists(small):
    """Catches a method that is helped by more second runs than another."""
    settings = replace(
        small, methods=",".join(METHODS), tasks="clinc150", trials=3, finalists=2, shadow_model="s"
    )
    rows = [ok(cell, 0.5) for cell in schedule.search_cells(settings)]
    methods = [cell.method for cell in schedule.ready(settings, rows)]
    assert {method: methods.count(method) for method in METHODS} == dict.fromkeys(METHODS, 2)


# A learning rate of the backbone's own


def test_keys_name_the_backbones_rate_only_where_it_is_set():
    """Catches recorded studies whose cells would all run again, and two trials that count as one."""
    cell = Cell("search", "m", "clinc150", "shadow-explicit", 16, 1000, 1e-3, 0.3)
    assert cell.key == "search m clinc150 shadow-explicit rank=16 seed=1000 lr=0.001 alpha=0.3"
    assert replace(cell, backbone_learning_rate=1e-4).key == f"{cell.key} backbone_lr=0.0001"
    assert Cell("final", "m", "gsm8k", "lora", 8, 0, 5e-4).key == "final m gsm8k lora rank=8 seed=0 lr=0.0005"


def test_the_backbones_rate_goes_from_the_search_to_the_end(small, tmp_path):
    """Catches a second seed, a final run or a timing at one rate after a search that chose two, and a file that loses one of them."""
    coupling = {"learning_rate": 1e-3, "alpha": 0.3}
    listed = [
        coupling,
        {**coupling, "backbone_learning_rate": 1e-4},
        {**coupling, "backbone_learning_rate": 1e-5},
    ]
    plan = replace(
        small, methods="shadow", tasks="clinc150", trials=3, finalists=2, search={"shadow": listed}
    )
    (tmp_path / "study.yaml").write_text(plan.to_yaml())
    plan = _parser.parse("compare", verb.run, ["--config", str(tmp_path / "study.yaml")])["settings"]
    assert plan.candidates("shadow") == [
        Setting(1e-3, 0.3),
        Setting(1e-3, 0.3, 1e-4),
        Setting(1e-3, 0.3, 1e-5),
    ]
    trials = schedule.ready(plan, [])
    assert [cell.backbone_learning_rate for cell in trials] == [None, 1e-4, 1e-5]
    rows = [ok(cell, value) for cell, value in zip(trials, (0.5, 0.6, 0.7), strict=True)]
    seconds = schedule.ready(plan, rows)
    assert [(cell.seed, cell.setting) for cell in seconds] == [
        (1001, (1e-3, 0.3, 1e-5)),
        (1001, (1e-3, 0.3, 1e-4)),
    ]
    rows += [ok(cell, value) for cell, value in zip(seconds, (0.1, 0.6), strict=True)]
    for stage, count in (("final", 2), ("cost", 1)):
        cells = schedule.ready(plan, rows)
        assert [(cell.stage, cell.setting) for cell in cells] == count * [(stage, (1e-3, 0.3, 1e-4))]
        rows += [ok(cell, 0.5) for cell in cells]
    assert schedule.ready(plan, rows) == []


def crashing(cell: Cell, settings: Study) -> list[dict]:
    """Lose two of three of LoRA's trials, the base's second runs, and all of the shadow's trials."""
    rows = measured(cell, settings)
    lost = (
        cell.learning_rate != 1e-3 if cell.method == "lora" else cell.seed == 1001 or cell.method == "shadow"
    )
    if cell.stage == "search" and lost:
        raise ZeroDivisionError("a fault")
    return rows


def test_finalists_that_fail_leave_a_study_that_ends(small, capsys):
    """Catches a study that waits for finalists it cannot have, or counts cells that there are not."""
    settings = replace(small, tasks="clinc150", trials=3, finalists=2, seeds=1)
    result = go(settings, crashing)
    seconds = [key for key in called(settings) if "seed=1001" in key]
    assert [key.split()[3] for key in seconds] == ["base", "lora", "base"]
    # nine trials of which LoRA lost two and the shadow all, three second runs of which the base lost both, then base and LoRA
    assert (result.cells, result.done, len(result.failed), len(result.missing)) == (
        9 + 3 + 6,
        4 + 1 + 4,
        5 + 2,
        2,
    )
    assert schedule.choices(settings, written(settings))[str(MODEL), "clinc150", "base"] == Setting(3e-2), (
        "by the first seed"
    )
    assert "[1/21] search " in (said := capsys.readouterr().err)
    assert "[16/18] cost " in said.splitlines()[-1]


def stopped_at_the_second_seed(cell: Cell, settings: Study) -> list[dict]:
    rows = measured(cell, settings)
    if sum("seed=1001" in key for key in called(settings)) == 2:
        raise KeyboardInterrupt
    return rows


def test_second_seeds_are_gone_on_with(small):
    """Catches finalists that run again, change or are left out when a study is stopped among them."""
    settings = replace(small, trials=3, finalists=2)
    with pytest.raises(KeyboardInterrupt):
        go(settings, stopped_at_the_second_seed)
    stopped_at = called(settings)[-1]
    result = go(settings)
    assert (result.cells, result.done) == (42, 42)
    assert len([key for key in called(settings) if "seed=1001" in key]) == 11
    assert sorted(called(settings)) == sorted([*{row["key"] for row in written(settings)}, stopped_at])


# The record


def test_a_study_runs_every_cell_once(small):
    result = go(small)
    keys = called(small)
    assert (result.cells, result.done, result.failed, result.missing) == (27, 27, {}, [])
    assert len(keys) == len(set(keys)) == 27
    chosen = schedule.choices(small, written(small))
    assert chosen[str(MODEL), "clinc150", "lora"] == Setting(1e-3)
    assert chosen[str(MODEL), "gsm8k", "lora"] == Setting(3e-4), "of losses the lower"
    row = written(small)[-1]
    assert (row["study"], row["device"], row["workers"]) == ("out", "cpu", 1)
    assert row["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["time"])
    assert row["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", row["commit"])
    assert yaml.safe_load((Path(small.output) / "study.yaml").read_text())["seeds"] == 2
    go(small)
    assert called(small) == keys, "a complete study has nothing left to run"


def test_resume_after_a_kill(small, tmp_path):
    """Catches rows that were still in a buffer, and finished cells that run again."""
    (tmp_path / "study.yaml").write_text(small.to_yaml())
    code = (
        "import sys, yaml; from helpers import noted_cells as t; from shadowpeft.compare.study import Study;"
        "t.go(Study(**yaml.safe_load(open(sys.argv[1]))), t.killed_once)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    words = [sys.executable, "-c", code, str(tmp_path / "study.yaml")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = called(small)
    assert len(before) == 5
    assert {row["key"] for row in written(small)} == set(before[:4])
    assert go(small).done == 27
    assert sorted(called(small)) == sorted([*{row["key"] for row in written(small)}, before[4]]), (
        "only the one that was killed ran twice"
    )


@pytest.mark.parametrize("lost", [10, "line"])
def test_a_last_cell_cut_short_is_run_again(small, lost):
    """Catches half a line that stops every later reading, and half a cell (attached without detached) that counts as whole."""
    go(small)
    calls = len(called(small))
    lines = record(small).read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    assert (last["method"], last["mode"], last["part"], last["parts"]) == ("shadow", "detached", 2, 2)
    cut = sum(map(len, lines)) - (lost if lost != "line" else len(lines[-1]))
    os.truncate(record(small), cut)
    with pytest.warns(UserWarning, match="the last cell was cut short"):
        assert go(small).done == 27
    assert called(small)[calls:] == [last["key"]]
    assert [row["mode"] for row in written(small)[-2:]] == ["attached", "detached"]


def test_a_damaged_line_is_named(small):
    go(small)
    lines = record(small).read_text().splitlines()
    record(small).write_text("\n".join(["{", *lines[1:], ""]))
    with pytest.raises(
        DataError, match=r"compare-out\.jsonl:1: expected a row of a study, got a line that is damaged"
    ):
        go(small)


# What fails


def test_failures_are_recorded_and_the_study_goes_on(small):
    """Catches a study that one cell without memory ends, and a method without a choice that is forgotten."""
    result = go(small, failing)
    by_status = {
        status: [row for row in written(small) if row["status"] == status]
        for status in ("ok", "out-of-memory", "crashed")
    }
    assert {row["key"].split()[0] for row in by_status["out-of-memory"]} == {"final"}
    assert by_status["out-of-memory"][0]["error"] == "CUDA out of memory. Tried to allocate 2 GiB"
    assert len(by_status["out-of-memory"]) == 2
    assert len(by_status["crashed"]) == 2, "both trials of the shadow"
    assert re.fullmatch(
        r"ZeroDivisionError: a fault \(noted_cells\.py:\d+: raise .*\)", by_status["crashed"][0]["error"]
    )
    assert len(result.failed) == 4
    assert sorted(key.split()[0] for key in result.missing) == ["cost", "final", "final"]
    assert all("gsm8k shadow" in key for key in result.missing)
    assert result.done + 4 + 3 == result.cells == 27


def test_the_test_split_is_not_read_twice(small):
    """Catches a retry that measures again on the test split what was measured on it, or that reopens the search."""
    go(small, failing)
    before = called(small)
    result = go(small, retry=False)
    assert called(small) == before, "recorded failures stay"
    result = go(small, retry=True)
    again = called(small)[len(before) :]
    assert sorted(key.split()[0] for key in again) == ["final", "final"]
    assert all("lora" in key and "seed=1 " in key for key in again)
    final = [
        row["key"]
        for row in written(small)
        if row["stage"] == "final" and row["status"] == "ok" and row["mode"] == "attached"
    ]
    assert len(final) == len(set(final))
    assert len(result.failed) == 2, "the search is closed once the test split was read"
    assert len(result.missing) == 3


def test_failed_trials_may_run_again_before_the_test_is_read(small):
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    with ledger.Ledger(small) as rows:
        cell = schedule.ready(small, rows.rows)[0]
        rows.write(cell, ledger.failed(cell, "crashed", "x"), "cpu")
        assert cell not in schedule.ready(small, rows.rows)
        rows.forget_failures()
        assert cell in schedule.ready(small, rows.rows)
        rows.write(cell, [ok(cell, 1.0)], "cpu")
    assert [row["status"] for row in ledger.read(record(small)) if row["key"] == cell.key] == ["ok"]


# Workers


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_worker_that_dies_is_replaced(small):
    """Catches a study that waits for ever for a process that is gone, or loses the cell it was at."""
    done: list[tuple[Cell, list[dict], str]] = []
    settings = replace(small, workers=2, tasks="clinc150")
    cells = schedule.search_cells(settings) + schedule.cost_cells(settings, schedule.choices(settings, []))
    assert len(cells) == 9
    workers.run_cells(cells, settings, deadly, lambda *result: done.append(result))
    assert sorted(cell.key for cell, _, _ in done) == sorted(cell.key for cell in cells)
    dead = [rows[0] for _, rows, _ in done if rows[0]["status"] != "ok"]
    assert sorted(row["method"] for row in dead) == ["lora", "shadow"], (
        "as many as there are workers: without others nobody is left"
    )
    said = ("crashed", "the worker process was killed by SIGKILL (perhaps the machine's memory ran out)")
    assert {(row["status"], row["error"]) for row in dead} == {said}
    assert {name for _, _, name in done} == {"cpu"}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_out_of_memory_beside_others_is_run_again_alone(small):
    """Catches a cell that is given up, or recorded twice, since its neighbours held the memory."""
    settings = replace(small, workers=2, tasks="clinc150", methods="base,lora,shadow", trials=1)
    done: list[tuple[Cell, list[dict]]] = []
    cells = schedule.search_cells(settings)
    workers.run_cells(cells, settings, crowded, lambda cell, rows, device: done.append((cell, rows)))
    outcomes = sorted((cell.method, rows[0]["status"]) for cell, rows in done)
    assert outcomes == [("base", "ok"), ("lora", "out-of-memory"), ("shadow", "ok")]
    assert sorted(called(settings)) == sorted(
        [cell.key for cell in cells] + [cell.key for cell in cells if cell.method != "base"]
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:81] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
        ),
        MemoryError(),
    ],
    ids=["torch", "cublas", "cuda", "cpu", "cpu of Windows", "python"],
)
def test_out_of_memory_in_all_its_words(small, error):
    """Catches a library's own words for it, recorded as a crash and not run again alone."""

    def full(cell: Cell, settings: Study) -> list[dict]:
        raise error

    cell = schedule.search_cells(small)[0]
    assert workers.attempt(cell, small, full)[0]["status"] == "out-of-memory"


@pytest.mark.slow
def test_workers_share_the_cells_and_costs_run_alone(small):
    """Catches a pool that uses one process, and times that are taken while other cells compute."""
    settings = replace(small, workers=2, methods="lora,shadow", tasks="clinc150", seeds=1)
    go(settings, slow)
    processes = {
        stage: {row["config"]["pid"] for row in written(settings) if row["stage"] == stage}
        for stage in ("search", "cost")
    }
    assert len(processes["search"]) == 2
    assert processes["cost"] == {os.getpid()}


def test_a_worker_sees_one_gpu(monkeypatch):
    """Catches two workers on one GPU and none on the other, and a choice of GPUs that is lost."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with workers._environment(1, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
        assert os.environ["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2)), (
            "the cores are shared, too"
        )
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with workers._environment(1, 2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# Folder, model and data


def test_two_studies_in_one_folder(small):
    go(small)
    with pytest.raises(ConfigError, match="holds the study 'out', not 'other'; choose another output folder"):
        go(replace(small, name="other"))
    go(replace(small, workers=1, eval_batch_size=8))
    with pytest.raises(
        ConfigError,
        match=r"this study has read its test split; start a new one in a new folder .*\(seeds was 2, is 5\)",
    ):
        go(replace(small, seeds=5))


OLDER = {"finalists": 1, "test_skip": 0, "tie_standard_errors": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"finalists": 2},
        {"test_skip": 1},
        {"test_skip": [1, 2]},
        {"test_skip": {"gsm8k": 1}},
        {"tie_standard_errors": 1.0},
    ],
    ids=str,
)
def test_a_study_file_older_than_a_setting(small, change):
    """Catches a study that cannot be gone on with since its file lacks a new setting, or that goes on under another value of it."""
    small = replace(small, **OLDER)
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    path = Path(small.output) / "study.yaml"
    values = {name: value for name, value in yaml.safe_load(path.read_text()).items() if name not in OLDER}
    path.write_text(yaml.safe_dump(values))
    ((name, value),) = change.items()
    before = OLDER[name]
    other = re.escape(f"({name} was {before}, is {value})")
    with pytest.raises(ConfigError, match=f"under other settings {other}; set them back"):
        go(replace(small, **change))
    assert go(Study(**values, tie_standard_errors=0, test_skip=[])).done == 27
    assert go(Study(**values, tie_standard_errors=0, test_skip={"gsm8k": 0})).done == 27
    with pytest.raises(ConfigError, match=f"has read its test split; .*, or set them back {other}"):
        go(replace(small, **change))


@pytest.mark.parametrize(
    ("before", "same", "other"),
    [
        ({"gsm8k": 2}, {"clinc150": 0, "gsm8k": [2]}, {"clinc150": 2}),
        (2, {"gsm8k": 2, "clinc150": [2]}, {"gsm8k": 2}),
    ],
    ids=["mapping", "number"],
)
def test_rows_skipped_by_task_are_the_same_however_they_are_written(small, before, same, other):
    """Catches a study that cannot be gone on with since what it skips is written otherwise, and one that goes on with other rows."""
    with pytest.raises(KeyboardInterrupt):
        go(replace(small, test_skip=before), interrupted)
    with pytest.raises(
        ConfigError, match=re.escape(f"under other settings (test_skip was {before}, is {other})")
    ):
        go(replace(small, test_skip=other))
    assert go(replace(small, test_skip=same)).done == 27


def test_settings_changed_before_the_test_is_read(small):
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    with pytest.raises(
        ConfigError, match=r"holds this study under other settings \(steps was 300, is 5\); set them back"
    ):
        go(replace(small, steps=5))


def test_a_folder_of_something_else(small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds something other than a study \(it has no study.yaml\)"):
        go(small)
    with pytest.raises(ConfigError, match="output must be a folder"):
        go(replace(small, output=str(tmp_path / "out" / "thesis.txt")))


def test_a_user_s_own_study_file_is_not_overwritten(small, tmp_path):
    """Catches a file whose remarks are lost since its folder is the output, also one that was copied from a study and changed."""
    own = Path(small.output) / "study.yaml"
    own.parent.mkdir()
    for content in (
        "# why these seeds\n" + small.to_yaml(),
        small.to_yaml() + "# why\n",
        "model: [",
        "model: m\nseeds: 2\n",
    ):
        own.write_text(content)
        with pytest.raises(
            ConfigError,
            match=rf"^{own} was written or changed by hand, .*; rename it, or choose another output folder$",
        ):
            go(small)
        assert own.read_text() == content
        assert list(own.parent.iterdir()) == [own]
    own.write_text(
        replace(small, seeds=5).to_yaml()
    )  # as a study leaves it that was stopped before its first row
    go(small)
    assert yaml.safe_load(own.read_text())["seeds"] == 2


@pytest.mark.parametrize(
    "change", [{"model": "./nowhere"}, {"data_dir": "nowhere"}, {"overrides": {"base": {"r": 1}}}], ids=str
)
def test_a_refused_study_leaves_nothing_behind(small, change):
    """Catches a folder with an empty record, left by a study that could never begin."""
    with pytest.raises(UserError):
        go(replace(small, **change))
    assert not Path(small.output).exists()


def test_a_second_process_leaves_the_study_file_of_the_first(small):
    """Catches settings overwritten while their study runs its first cell, so that it cannot be gone on with."""
    with ledger.Ledger(small):
        with pytest.raises(ConfigError, match="another process is running the study"):
            go(replace(small, seeds=5))
        assert yaml.safe_load((Path(small.output) / "study.yaml").read_text())["seeds"] == 2


def test_a_folder_that_cannot_be_made(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError,
        match=r"^the study's folder \S+file/out cannot be written \(Not a directory\); choose another output$",
    ):
        go(replace(small, output=str(tmp_path / "file" / "out")))


def test_commit_of_a_copy_without_history(small, monkeypatch):
    """Catches rows from a rented machine that nobody can tell the code of, and a name that overrules the checkout's own."""
    monkeypatch.setenv("SHADOWPEFT_COMMIT", "1234abcd")
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: None)
    assert provenance.commit() == "1234abcd"
    monkeypatch.setattr(
        provenance, "_git", lambda folder, *words: {"rev-parse": "5678", "status": ""}.get(words[0], "")
    )
    assert provenance.commit() == "5678"
    monkeypatch.delenv("SHADOWPEFT_COMMIT")
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: None)
    assert provenance.commit() is None


def test_two_processes_cannot_share_a_study(small):
    with ledger.Ledger(small), pytest.raises(ConfigError, match="another process is running the study"):
        go(small)


def test_data_is_checked_before_any_work(small, data):
    """Catches a split that is found missing after hours of training."""
    for path, content, message in (
        (data / "clinc150" / "validation.jsonl", None, None),  # one is cut off train then
        (data / "gsm8k" / "test.jsonl", None, "has no split 'test'"),
        (
            data / "clinc150" / "test.jsonl",
            '{"text": "x", "intent": "weather"}\n',
            "unseen in training (weather)",
        ),
        (data / "wiki_en" / "validation.jsonl", None, "has no split 'validation'"),
    ):
        kept = path.read_text()
        path.unlink() if content is None else path.write_text(content)
        if message is None:
            run.check_data(small)
        else:
            with pytest.raises(DataError, match=re.escape(message)):
                go(small)
        path.write_text(kept)
    with pytest.raises(DataError, match="'mawps'"):
        go(replace(small, ood=True))
    assert called(small) == []
    go(small)  # a study that was refused may begin under other settings
    assert yaml.safe_load((Path(small.output) / "study.yaml").read_text())["ood"] is False


@pytest.mark.parametrize(
    ("skip", "tasks", "message"),
    [
        (
            4,
            "clinc150",
            "clinc150 has 4 test rows, and a test_skip of 4 leaves none of them; choose a smaller test_skip",
        ),
        (
            [3, 1],
            "clinc150",
            "clinc150 has 4 test rows, and a test_skip of 3 + 1 leaves none of them; choose a smaller test_skip",
        ),
        (
            3,
            "gsm8k",
            "mawps, an out-of-distribution test of gsm8k, has 2 test rows, and a test_skip of 3 leaves none of them; "
            "choose a smaller test_skip, or ood: false",
        ),
        (
            {"gsm8k": 3, "clinc150": [3, 1]},
            "clinc150,gsm8k",
            "clinc150 has 4 test rows, and a test_skip of 3 + 1 leaves none of them; choose a smaller test_skip",
        ),
        (
            {"gsm8k": 3, "mawps": 2},
            "gsm8k",
            "mawps, an out-of-distribution test of gsm8k, has 2 test rows, and a test_skip of 2 leaves none of them; "
            "choose a smaller test_skip, or ood: false",
        ),
    ],
    ids=["task", "list", "partner", "a task's own", "a partner's own"],
)
def test_leaving_out_all_test_rows_is_refused_before_any_work(small, data, skip, tasks, message):
    """Catches a study that trains for hours and has no test row left to be measured on, or only its partners' lack them."""
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        write(
            data / "mawps" / f"{split}.jsonl",
            [{"question": f"{split} {i}", "answer": i} for i in range(count)],
        )
    settings = replace(small, tasks=tasks, ood=True, test_skip=skip, trials=1, methods="lora", seeds=1)
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        go(settings)
    assert called(settings) == []
    go(replace(settings, test_skip=1))
    go(replace(settings, ood=False, test_skip=[1, 2], output=f"{settings.output}-2", name=None))


def test_a_tokenizer_of_single_signs_is_told(small, tmp_path):
    """Catches hours of training on the ids of a tokenizer that was converted wrongly, on which nothing can be learned."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    broken = Tokenizer(models.WordLevel({chr(code): code - 32 for code in range(32, 127)}, unk_token="?"))
    broken.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=broken, eos_token="~").save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_bytes((MODEL / "config.json").read_bytes())
    checks.check_data(small)  # the embedded model's own raises no warning
    message = r"the tokenizer of \S+broken makes (\d+) tokens of the \1 characters of 4 prompts of clinc150"
    with pytest.warns(UserWarning, match=message):
        checks.check_data(replace(small, model=str(tmp_path / "broken"), tasks="clinc150"))


def test_training_rows_that_are_too_long_are_told(small):
    """Catches a study of the shortest problems alone."""
    with pytest.warns(
        UserWarning, match=r"^\d+ of the first \d+ training rows of gsm8k have more than max_length=12 tokens"
    ):
        checks.check_data(replace(small, tasks="gsm8k", max_length=12))


@pytest.mark.parametrize("bf16", [True, False])
def test_a_base_without_numbers_is_refused(small, tmp_path, bf16):
    """Catches a study in which every method learns nothing, since the base itself computes NaN on this device."""
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    sound = replace(small, bf16=bf16, tasks="clinc150")
    checks.check_numbers(sound, {"clinc150": ["one text", "a second, longer text"]})
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(tmp_path / "nan")
    study = replace(sound, model=str(tmp_path / "nan"))
    if not bf16:
        checks.check_numbers(
            study, {"clinc150": ["one text"]}
        )  # not loaded on a CPU in float32, where no device is to blame
        return
    with pytest.raises(
        ConfigError,
        match=r"the base \S+nan, untrained, computes .* in bfloat16 on cpu \(texts of clinc150, padded on the",
    ):
        go(study)
    assert called(study) == []


def test_models_are_checked_before_any_work(small, data, tmp_path):
    with pytest.raises(UserError, match=r"there is no model folder \./nowhere"):
        go(replace(small, model=f"{MODEL},./nowhere"))
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "t5" / name).write_bytes((MODEL / name).read_bytes())
    with pytest.raises(UserError, match="model_type 't5' is not supported; supported: "):
        go(replace(small, model=str(tmp_path / "t5"), output=str(tmp_path / "other")))
    assert called(small) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"overrides": {"lora": {"lora_droput": 0.1}}},
            "unknown setting 'lora_droput' (did you mean 'lora_dropout'?)",
        ),
        ({"overrides": {"dora": {"lora_droput": 0.1}}}, "overrides of dora: unknown setting 'lora_droput'"),
        ({"overrides": {"base": {"r": 1}}}, "overrides of base: unknown setting 'r'; it has none"),
        ({"overrides": {"shadow": {"alpha": 1.0}}}, "overrides of shadow set alpha, which is searched for"),
        ({"overrides": {"shadow": {"dropout": 2.0}}}, "dropout"),
        (
            {"overrides": {"lora": {"target_modules": ["nothing"]}}},
            "overrides of lora (target_modules=['nothing']) cannot be used: ",
        ),
        ({"overrides": {"lora": {"r": 4}}}, f"{MODEL}: lora cannot be matched to LoRA's"),
        ({"methods": "lora,dora", "ranks": "16,1"}, f"{MODEL}: dora cannot be matched to LoRA's"),
        (
            {"methods": "lora,peft-shadow", "ranks": "16,1"},
            f"{MODEL}: peft-shadow cannot be matched to LoRA's",
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_methods_are_checked_before_any_work(small, change, message):
    """Catches a study that trains for hours before it finds that a method cannot be built."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        go(replace(small, **change))
    assert called(small) == []


# The command


def words(settings: Study, tmp_path: Path) -> list[str]:
    (tmp_path / "study.yaml").write_text(settings.to_yaml())
    return ["compare", "--config", str(tmp_path / "study.yaml")]


def test_ctrl_c_says_how_to_go_on(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_report", lambda: no_report)
    monkeypatch.setattr(run, "_run_cell", lambda: interrupted)
    command = words(small, tmp_path)
    monkeypatch.setattr(sys, "argv", ["shadowpeft", *command])
    assert cli.main(command) == 130
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith(
        f"go on with the same command: shadowpeft compare --config {tmp_path}/study.yaml"
    )
    assert said.out == ""
    assert len(written(small)) == 2
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith("method  mode  cells")
    assert (Path(small.output) / "table.md").read_text() == f"{len(written(small))} rows of 27 cells\n"
    assert said.err.splitlines()[0].startswith("[3/27] search ")
    monkeypatch.setattr(run, "_run_cell", pytest.fail)
    (Path(small.output) / "table.md").unlink()
    assert cli.main([*command, "--report-only", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["cells"], Path(summary["table"]).exists()) == (27, 27, True)


def test_a_report_of_an_unfinished_study_says_what_is_left(small, tmp_path, monkeypatch, capsys):
    """Catches cells called impossible that nobody has run yet, and a reader who is not told how many or how to go on."""
    monkeypatch.setattr(run, "_report", lambda: no_report)
    command = [*words(small, tmp_path), "--report-only"]
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    capsys.readouterr()
    assert cli.main(command) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "shadowpeft compare: the study is not over: 25 of 27 cells have yet to run (8 of the stage search, 11 of the stage final, 6 of the "
        "stage cost); the same command without --report-only goes on with them"
    ]
    go(small, failing)
    capsys.readouterr()
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert "3 of 27 cells could not be run, such as final" in said
    assert "yet to run" not in said


def test_report_only_needs_a_study(small, tmp_path, capsys):
    assert cli.main([*words(small, tmp_path), "--report-only"]) == 2
    assert "there is no study in" in capsys.readouterr().err


def test_a_report_that_fails_midway_does_not_end_the_study(small):
    """Catches hours of runs given up for a picture."""
    asked = []

    def report(*values):
        asked.append(values)
        if len(asked) < 3:
            raise ZeroDivisionError
        return no_report(*values)

    with pytest.warns(UserWarning, match=r"the report could not be written yet \(ZeroDivisionError"):
        assert run.compare(small, run_cell=measured, report=report).done == 27


def test_nothing_measured_is_a_failure(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_report", lambda: no_report)
    monkeypatch.setattr(run, "_run_cell", lambda: lambda cell, settings: 1 / 0)
    assert cli.main(words(replace(small, methods="lora"), tmp_path)) == 1
    assert "4 of 10 cells failed" in capsys.readouterr().err


# Recipes


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_study(path):
    """Catches a recipe that the program refuses once the GPUs are rented."""
    settings = _parser.parse("compare", verb.run, ["--config", str(path)])["settings"]
    assert all(len(settings.candidates(method)) == settings.trials for method in settings.names("methods"))


def test_the_third_study_skips_what_was_read():
    """Catches test rows that one of the studies before has read, and fresh rows of gsm8k that are left out."""
    settings = _parser.parse("compare", verb.run, ["--config", str(RECIPES / "small_models_3.yaml")])[
        "settings"
    ]
    skips = {task: settings.skips_of(task) for task in settings.tested}
    assert skips == {
        **dict.fromkeys(("clinc150", "amazon5", "newsgroups20"), (1000, 1000, 1000)),
        "gsm8k": (),
    }


@pytest.fixture
def published(tmp_path) -> Path:
    """A gsm8k folder of 60 train rows. Fresh are 51: six are validation rows, two the same question, one a question of the test split."""
    rows = [
        {"question": f"{i} + {i}?", "answer": f"Add.\n#### {2 * i}", "final": str(2 * i)} for i in range(60)
    ]
    rows[50] = {**rows[2], "question": " 2 +  2?"}
    write(tmp_path / "published" / "gsm8k" / "train.jsonl", rows)
    write(tmp_path / "published" / "gsm8k" / "test.jsonl", [rows[3], {**rows[1], "question": "1 - 1?"}])
    return tmp_path / "published" / "gsm8k"


@pytest.fixture
def fresh(published, tmp_path, monkeypatch):
    """Run the recipe on the folder."""

    def write_fresh(
        test_rows: int, out: Path = tmp_path / "fresh" / "gsm8k", before: tuple[int, ...] = ()
    ) -> Path:
        drawn = ["--drawn-before", *map(str, before)] if before else []
        monkeypatch.setattr(
            sys, "argv", ["fresh_gsm8k.py", str(published), str(out), f"--test-rows={test_rows}", *drawn]
        )
        runpy.run_path(str(RECIPES / "fresh_gsm8k.py"), run_name="__main__")
        return out

    return write_fresh


def prompts(folder: Path) -> dict[str, set[str]]:
    """Read every split as a study does."""
    source = Source(str(folder.parent))
    return {
        split: {squeezed(item.prompt) for item in find("gsm8k").load(split, source)}
        for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize("test_rows", [20, 51])
def test_fresh_test_rows_were_trained_on_and_never_read(published, fresh, test_rows):
    """Catches a test row that was a validation or test row before, a question in two splits, and rows that are lost or in another order."""
    out = fresh(test_rows)
    old, new = prompts(published), prompts(out)
    assert len(new["test"]) == test_rows
    assert new["test"] < old["train"]
    assert new["validation"] <= old["validation"]
    written = {split: (out / f"{split}.jsonl").read_text().splitlines() for split in ("train", "test")}
    lines = (published / "train.jsonl").read_text().splitlines()
    assert [line for line in lines if line not in written["test"]] == written["train"]
    assert [line for line in lines if line not in written["train"]] == written["test"]
    questions = {
        split: {squeezed(json.loads(line)["question"]) for line in rows} for split, rows in written.items()
    }
    assert not questions["train"] & questions["test"], "the loader would drop it from train without a word"


def test_later_draws_leave_out_what_was_drawn_before(published, fresh, tmp_path):
    """Catches a test row that an earlier draw's study has read, and one of them among the train rows."""
    draws, before = [], ()
    for number, rows in enumerate((20, 15, 16)):
        draws.append(fresh(rows, tmp_path / str(number) / "gsm8k", before))
        before = (*before, rows)
    tests = [prompts(out)["test"] for out in draws]
    assert len(set.union(*tests)) == 51
    assert set.union(*tests) < prompts(published)["train"]
    for number, out in enumerate(draws):
        assert not (prompts(out)["train"] | prompts(out)["validation"]) & set.union(*tests[: number + 1])
    with pytest.raises(
        SystemExit,
        match=r"--test-rows must be 1 to 16, the train rows that no study has measured on, got 17$",
    ):
        fresh(17, tmp_path / "more" / "gsm8k", (20, 15))
    with pytest.raises(
        SystemExit,
        match=r"--drawn-before must be 1 to 31, the train rows that no study has measured on, got 40$",
    ):
        fresh(1, tmp_path / "more" / "gsm8k", (20, 40))


def test_fresh_test_rows_are_the_same_every_time_and_overwrite_nothing(fresh, tmp_path):
    """Catches rows that another draw reads again, a folder that is lost, and more rows than there are."""
    out = fresh(20)
    again = fresh(20, tmp_path / "again" / "gsm8k")
    before = (out / "test.jsonl").read_bytes()
    assert (again / "test.jsonl").read_bytes() == before
    with pytest.raises(
        SystemExit,
        match=r"^fresh_gsm8k.py: \S+gsm8k is there already and is not overwritten; choose another folder$",
    ):
        fresh(10)
    assert (out / "test.jsonl").read_bytes() == before
    for wrong in (52, 0):
        with pytest.raises(
            SystemExit,
            match=f"--test-rows must be 1 to 51, the train rows that no study has measured on, got {wrong}$",
        ):
            fresh(wrong, tmp_path / "more" / "gsm8k")
    with pytest.raises(
        SystemExit, match=r"expected a folder named gsm8k, as --data-dir needs it, got \S+mine; rename it$"
    ):
        fresh(10, tmp_path / "mine")


def processor_seconds() -> float:
    """Count what this process and its children that have ended took of all cores."""
    return sum(os.times()[:4])


@pytest.mark.slow
@pytest.mark.timeout(900)  # minutes where the cores are free; on cores that others use, several times as long
def test_the_smoke_study(tmp_path, capsys):
    """Runs what `make study-smoke` runs: every part of a study on a real model, from the data to the plots, in under five minutes.

    It is the processor's time that counts: other work on the same cores does not change it.
    """
    began = processor_seconds()
    subprocess.run([sys.executable, str(RECIPES / "smoke_data.py"), str(tmp_path / "data")], check=True)
    folders = [
        "--model",
        str(MODEL),
        "--data-dir",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "smoke"),
    ]
    assert cli.main(["compare", "--config", str(RECIPES / "smoke.yaml"), *folders, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["cells"], summary["done"], summary["failed"], summary["missing"]) == (20, 20, {}, [])
    assert processor_seconds() - began < 300
    rows = [json.loads(line) for line in Path(summary["rows"]).read_text().splitlines()]
    final = [row for row in rows if row["stage"] == "final"]
    seen = {(row["task"], row["method"], row["mode"], row["seed"]) for row in final}
    modes = (("lora", "attached"), ("shadow", "attached"), ("shadow", "detached"))
    assert seen == {
        (task, *mode, seed) for task in ("clinc150", "gsm8k") for mode in modes for seed in (0, 1)
    }
    for row in final:
        assert (row["split"], row["status"], row["items"], len(row["correct"])) == ("test", "ok", 40, 40)
        assert row["train_seconds"] > 0
        assert row["versions"]["peft"]
        assert (row["forgetting"] is None) == (row["mode"] == "detached")
    trainable = {row["trainable"] for row in final}
    assert max(trainable) / min(trainable) < 1.05
    assert {path.name for path in (tmp_path / "smoke").iterdir()} >= {
        "study.yaml",
        "table.md",
        "differences.png",
        "calibration.png",
    }
    assert "lora" in (tmp_path / "smoke" / "table.md").read_text()
