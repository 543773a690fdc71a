"""The settings of a run: which of them contradict each other, and which have no effect."""

from pathlib import Path

import pytest
import yaml
from helpers.pretraining import settings

from shadowpeft import ConfigError
from shadowpeft.pretrain.config import PretrainConfig


def named(value: object) -> str:
    return "-".join(value) if isinstance(value, dict) else ""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_seconds": 3.0}, "max_steps or max_seconds, one of the two"),
        ({"max_steps": None}, "max_steps or max_seconds, one of the two"),
        ({"next_token": 0.0, "distil": 0.0, "match": 0.0}, "nothing to learn"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"blocks": []}, r"blocks must name at least one block of the base, counted from 0, got \[\]"),
        ({"blocks": [0, -1]}, r"counted from 0, got \[0, -1\]"),
        ({"blocks": [0], "layers": 1}, "give one of them"),
        ({"start": "fresh", "blocks": [0]}, "blocks cannot be set where the shadow starts from fresh"),
        (
            {"start": "a/model", "blocks": [0], "layers": 1},
            "blocks, layers cannot be set where the shadow starts from the model a/model",
        ),
        ({"intermediate_size": 8}, "intermediate_size cannot be set where the shadow starts from blocks"),
        ({"train_parts": "projection"}, "no projection"),
        ({"match_block": -1}, "match_block must be a whole number, 0 or more, got -1"),
    ],
    ids=named,
)
def test_settings_that_contradict_each_other_are_refused(changes, told):
    """Catches settings that are ignored, or that fail only in the run."""
    with pytest.raises(ConfigError, match=told):
        settings(Path("base"), Path("data"), Path("run"), **changes)


USELESS = [
    (
        {"distil": 0.0},
        "top_k 20 would change nothing, as distil, .* has the weight 0; "
        "leave top_k out, or give distil a weight",
    ),
    ({"distil": 0.0, "top_k": None, "temperature": 2.0}, "temperature 2.0 .* or give distil a weight"),
    ({"match": 0.0, "match_block": 1}, "match_block 1 .* or give match a weight"),
    ({"eval_data": "other"}, "eval_documents 4 .* eval_data is evaluated on instead"),
    (
        {"warm_start": "ridge"},
        "warm_start ridge .* a shadow that starts from blocks has no projection to fit; .* a smaller model",
    ),
    (
        {"start": "fresh", "warm_start_rows": 8},
        "warm_start_rows 8 .* a shadow that starts from fresh has no projection",
    ),
    (
        {"start": "small", "warm_start": "pinv", "warm_start_rows": 8},
        "warm_start_rows 8 .* pinv reads no text; .* weighted or ridge",
    ),
]


@pytest.mark.parametrize(("changes", "told"), USELESS, ids=named)
def test_settings_that_would_change_nothing_are_refused(changes, told):
    """Catches a setting that is taken and then not applied."""
    with pytest.raises(ConfigError, match=told):
        settings(Path("base"), Path("data"), Path("run"), **changes)


@pytest.mark.parametrize("changes", [changes for changes, _ in USELESS], ids=named)
def test_a_continued_run_keeps_settings_that_change_nothing(changes):
    """Catches a run that began before a setting was refused and can go on neither with it nor without it."""
    assert settings(Path("base"), Path("data"), Path("run"), **changes, resume=True).resume


def test_the_file_repeats_the_settings():
    """Catches a setting that is missing from run.yaml, and a file that continues a run by itself."""
    config = settings(Path("base"), Path("data"), Path("run"), blocks=[2, 1], resume=True)
    values = yaml.safe_load(config.to_yaml())
    assert PretrainConfig(**values) == settings(Path("base"), Path("data"), Path("run"), blocks=[2, 1])
