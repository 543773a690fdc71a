"""Settings that contradict each other are refused before anything is built."""

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.errors import ConfigError


def test_defaults():
    settings = DecodeBench()
    assert settings.shapes == ["embedded"]
    assert settings.way_names() == ["generate", "graph", "compiled"]
    assert (settings.contexts("0.6b"), settings.contexts("tiny"), settings.contexts(None)) == (
        [256],
        [16],
        [256],
    )
    assert settings.weights_dtype(CPU) == torch.float32
    assert settings.weights_dtype(torch.device("cuda")) == torch.bfloat16
    assert DecodeBench(model="m").shapes == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shape": "0.6"}, "there is no shape '0.6' .did you mean '0.6b'"),
        ({"shape": ","}, "shape must name at least one"),
        ({"shape": "tiny", "model": "m"}, "shape and model exclude each other"),
        ({"adapter": "a"}, "adapter needs model"),
        ({"data": "d"}, "data needs model"),
        ({"model": "m", "adapter": "a", "shadow": "s"}, "shadow is for an untrained shadow"),
        ({"model": "m", "adapter": "a", "variant": "paper"}, "variant is for an untrained shadow"),
        ({"model": "m", "data": "d", "batch": "8"}, "leave out context and batch"),
        ({"model": "m", "data": "d", "context": "8"}, "leave out context and batch"),
        ({"split": "dev"}, "split says which texts of data are read"),
        ({"model": "m", "texts": 4}, "texts says which texts of data are read"),
        ({"methods": "base,shadow", "draft_tokens": "4"}, "draft_tokens is for the method draft"),
        ({"batch": "0"}, "batch must be whole numbers"),
        ({"context": "1"}, "context must be whole numbers, separated by commas, each 2 or more"),
        ({"new_tokens": 8}, "new_tokens must be a whole number, 24 or more"),
        ({"ways": "x"}, "there is no way 'x'"),
        ({"methods": "x"}, "there is no method 'x'"),
        ({"draft_tokens": "x"}, "draft_tokens must be whole numbers"),
        ({"rounds": 0}, "rounds must be a whole number, 1 or more"),
    ],
)
def test_refusals(given, said):
    with pytest.raises(ConfigError, match=said):
        DecodeBench(**given)
