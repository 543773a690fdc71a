"""Settings of a run that are out of range or contradict each other."""

import pytest

from shadowpeft.errors import ConfigError
from shadowpeft.train.config import TrainConfig


@pytest.mark.parametrize(
    "changes",
    [
        {"shadow": 3},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"backbone_learning_rate": 0.0},
        {"backbone_learning_rate": -1.0},
        {"backbone_learning_rate": float("nan")},
        {"eval_fraction": 1.0},
        {"max_length": 1},
        {"warmup": -1.0},
        {"epochs": 0.0},
    ],
    ids=str,
)
def test_settings_out_of_range(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TrainConfig(model="m", data="d", output="o", **changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "packing needs max_length"),
        ({"max_length": 64, "attn_implementation": "flash_attention_2"}, "set batch_size to 1"),
    ],
)
def test_packing_without_what_it_needs_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig("model", "data", "output", packing=True, **settings)
