"""The shapes of the bases."""

import pytest
import torch
from helpers.benches import CPU
from transformers import AutoModelForCausalLM

from shadowpeft import arch
from shadowpeft.bench import shapes


@pytest.mark.parametrize(
    ("shape", "parameters"), [("0.6b", 596_049_920), ("4b", 4_022_468_096), ("8b", 8_190_735_360)]
)
def test_shapes_are_those_of_the_published_models(shape, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes.SHAPES[shape].config())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert arch.context_of(model.config) == 40960


def test_the_embedded_shape_is_the_packaged_model():
    base = shapes.build("embedded", CPU, torch.float32, 0)
    assert base.dtype == torch.float32
    assert base.config.num_hidden_layers == 8
