"""The folder of a study: in which a study may begin or go on, and in which not."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.noted_cells import (
    go,
    interrupted,
)

from shadowpeft.compare.study import Study
from shadowpeft.errors import ConfigError, UserError


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


OLDER = {"extensions": 0, "finalists": 1, "test_skip": 0, "tie_standard_errors": 0}


@pytest.mark.parametrize(
    "change",
    [
        {"extensions": 1},
        {"finalists": 2},
        {"test_skip": 1},
        {"test_skip": [1, 2]},
        {"test_skip": {"gsm8k": 1}},
        {"tie_standard_errors": 1.0},
    ],
    ids=str,
)
def test_a_study_file_older_than_a_setting(small, change):
    """Catches a study that cannot be continued since its file lacks a new setting, or that goes on under
    another value of it."""
    small = replace(small, **OLDER)
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    path = Path(small.output) / "study.yaml"
    values = {
        name: value
        for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items()
        if name not in OLDER
    }
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    ((name, value),) = change.items()
    before = OLDER[name]
    other = re.escape(f"({name} was {before}, is {value})")
    with pytest.raises(ConfigError, match=f"under other settings {other}; set them back"):
        go(replace(small, **change))
    assert go(Study(**values, extensions=0, tie_standard_errors=0, test_skip=[])).done == 27
    assert go(Study(**values, extensions=0, tie_standard_errors=0, test_skip={"gsm8k": 0})).done == 27
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
    """Catches a study that cannot be continued since what it skips is written otherwise, and one that goes on
    with other rows."""
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
    (tmp_path / "out" / "thesis.txt").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds something other than a study \(it has no study.yaml\)"):
        go(small)
    with pytest.raises(ConfigError, match="output must be a folder"):
        go(replace(small, output=str(tmp_path / "out" / "thesis.txt")))


def test_a_user_s_own_study_file_is_not_overwritten(small, tmp_path):
    """Catches a file whose remarks are lost since its folder is the output, also one that was copied from a
    study and changed."""
    own = Path(small.output) / "study.yaml"
    own.parent.mkdir()
    for content in (
        "# why these seeds\n" + small.to_yaml(),
        small.to_yaml() + "# why\n",
        "model: [",
        "model: m\nseeds: 2\n",
    ):
        own.write_text(content, encoding="utf-8")
        with pytest.raises(
            ConfigError,
            match=rf"^{own} was written or changed by hand, .*; rename it, or choose another output folder$",
        ):
            go(small)
        assert own.read_text(encoding="utf-8") == content
        assert list(own.parent.iterdir()) == [own]
    own.write_text(
        replace(small, seeds=5).to_yaml(), encoding="utf-8"
    )  # as a study leaves it that was stopped before its first row
    go(small)
    assert yaml.safe_load(own.read_text(encoding="utf-8"))["seeds"] == 2


@pytest.mark.parametrize(
    "change", [{"model": "./nowhere"}, {"data_dir": "nowhere"}, {"overrides": {"base": {"r": 1}}}], ids=str
)
def test_a_refused_study_leaves_nothing_behind(small, change):
    """Catches a folder with an empty record, left by a study that could never begin."""
    with pytest.raises(UserError):
        go(replace(small, **change))
    assert not Path(small.output).exists()


def test_a_study_of_a_setting_that_is_not_known_is_not_continued(small):
    """Catches a setting of a study that is dropped without a word when it goes on."""
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    path = Path(small.output) / "study.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**values, "finalist": 2}), encoding="utf-8")
    message = r"study\.yaml has the unknown setting finalist \(did you mean 'finalists'\?\); remove it"
    with pytest.raises(ConfigError, match=message):
        go(small)
