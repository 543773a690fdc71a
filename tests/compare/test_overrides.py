"""Settings that a study may set for a method."""

import dataclasses

import pytest
import torch
from helpers.tiny_tasks import TASKS, cell_of

from shadowpeft import ConfigError
from shadowpeft.compare import (
    methods,
    overrides,
)
from shadowpeft.compare.study import Study


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("lora", "lora_droput"),
        ("shadow", "drop"),
        ("full", "r"),
        ("peft-shadow", "alpha"),
        ("shadow-frozen", "train_backbone"),
    ],
)
def test_unknown_override_is_refused_by_name(method: str, setting: str, study: Study) -> None:
    """Catches a misspelt setting that is silently not applied."""
    wrong = dataclasses.replace(study, methods=method, overrides={method: {setting: 0.1}})
    with pytest.raises(ConfigError, match=f"overrides of {method}: unknown setting '{setting}'"):
        methods.build(cell_of(study, method), wrong, TASKS["classes"], 0, torch.device("cpu"))


@pytest.mark.parametrize("method", ["lora", "peft-shadow"])
def test_settings_that_serve_no_study_are_no_overrides(method: str) -> None:
    """Catches a list of settings that a study would record and never use, and one that a study needs left out
    with them."""
    known = set(overrides.known_settings(method))
    assert not known & {
        "base_model_name_or_path",
        "revision",
        "megatron_config",
        "runtime_config",
        "eva_config",
    }
    assert known >= {
        "r",
        "target_modules",
        "modules_to_save",
        *(["lora_alpha", "use_rslora"] if method == "lora" else ["shadow_model"]),
    }
