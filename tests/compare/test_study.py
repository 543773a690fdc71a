"""The settings of a study: what is refused, and what its file repeats."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from shadowpeft import ShadowConfig
from shadowpeft.cli import _parser
from shadowpeft.cli import compare as verb
from shadowpeft.compare.cell import Setting
from shadowpeft.compare.search_space import METHODS, SEARCH, SHADOWS
from shadowpeft.compare.study import Study
from shadowpeft.errors import ConfigError

RECIPES = Path(__file__).parents[2] / "recipes" / "compare"


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
            "finalists must be 4 or less, the number of trials they are taken from, got 5; lower them "
            "or raise trials",
        ),
        (
            {"tie_standard_errors": -0.5},
            "tie_standard_errors must be at least 0 and below 2147483648, got -0.5",
        ),
        (
            {"tie_standard_errors": float("nan")},
            "tie_standard_errors must be a number, at least 0 and below 2147483648, got nan",
        ),
        (
            {"tie_standard_errors": float("inf")},
            "tie_standard_errors must be at least 0 and below 2147483648, got inf",
        ),
        (
            {"tie_standard_errors": True},
            "tie_standard_errors must be a number, at least 0 and below 2147483648, got True",
        ),
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
            "test_skip must be a whole number, 0 or more, or a list of whole numbers, 1 or more, got "
            "[5, 2.5]",
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
            "test_skip names 'clinc', which is no task (did you mean 'clinc150'?); the tasks it can "
            "name here are: clinc150",
        ),
        (
            {"test_skip": {"mmlu": 5}},
            "test_skip names 'mmlu', which this study does not test; the tasks it can name here are: "
            "clinc150",
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
            "test_skip.clinc150 must be a whole number, 0 or more, or a list of whole numbers, 1 or "
            "more, got -1",
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
        ({"methods": "shadow-frozen"}, "the method shadow-frozen needs shadow_model"),
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
            "search.peft-shadow: backbone_learning_rate can be searched for shadow, shadow-paper, "
            "shadow-explicit, shadow-frozen alone; leave it out",
        ),
        (
            {"trials": 1, "search": {"lora": [{"learning_rate": 1, "backbone_learning_rate": 1}]}},
            "search.lora: backbone_learning_rate can be",
        ),
        (
            {
                "tasks": "clinc150,gsm8k",
                "trials": 1,
                "search": {"lora": [{"learning_rate": 1, "head_learning_rate": 1}]},
            },
            "search.lora: head_learning_rate is the rate of a classifier's new head, and gsm8k is answered",
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
    """Catches two ways to write the same rows that are two studies, and a list that the command line or a
    file does not take."""
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
        (tmp_path / "study.yaml").write_text(settings.to_yaml(), encoding="utf-8")
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
    """Catches a mapping that the command line or a file does not take, that reaches other tasks, or that is
    not written plainly."""
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
        (tmp_path / "written.yaml").write_text(settings.to_yaml(), encoding="utf-8")
        (tmp_path / "given.yaml").write_text(
            yaml.safe_dump({"model": "m", "tasks": "clinc150,gsm8k", "output": "o", "test_skip": given}),
            encoding="utf-8",
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
            tried = settings.candidates(method, "clinc150")
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
    (tmp_path / "study.yaml").write_text(listed.to_yaml(), encoding="utf-8")
    values = _parser.parse("compare", verb.run, ["--config", str(tmp_path / "study.yaml")])
    assert values["settings"] == listed
    assert listed.name == "out"
    assert listed.candidates("lora", "clinc150") == [Setting(1e-3), Setting(0.5)]
    (tmp_path / "study.yaml").write_text("model: m\nsedes: 3\n", encoding="utf-8")
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
    """Catches the natural list, or a number of a rank, refused as no text; other lists and numbers taken for
    names."""
    plain = {"model": "m", "tasks": "clinc150", "output": "o"}
    given = "".join(f"{name}: {value}\n" for name, value in plain.items() if name not in meant)
    (tmp_path / "mine.yaml").write_text(given + written, encoding="utf-8")
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
    (tmp_path / "mine.yaml").write_text(given + written, encoding="utf-8")
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


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_study(path):
    """Catches a recipe that the program refuses once the GPUs are rented."""
    settings = _parser.parse("compare", verb.run, ["--config", str(path)])["settings"]
    assert all(
        len(settings.candidates(method, "clinc150")) == settings.trials
        for method in settings.names("methods")
    )


def test_the_third_study_skips_what_was_read():
    """Catches test rows that one of the studies before has read, and fresh rows of gsm8k that are left
    out."""
    settings = _parser.parse("compare", verb.run, ["--config", str(RECIPES / "small_models_3.yaml")])[
        "settings"
    ]
    skips = {task: settings.skips_of(task) for task in settings.tested}
    assert skips == {
        **dict.fromkeys(("clinc150", "amazon5", "newsgroups20"), (1000, 1000, 1000)),
        "gsm8k": (),
    }
