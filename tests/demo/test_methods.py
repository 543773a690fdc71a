"""The two ways of adapting: what trains, and the curve that training leaves."""

import pytest
import torch
from transformers import AutoTokenizer

from shadowpeft.data.encode import encode_all
from shadowpeft.demo.methods import fit, with_lora, with_shadow
from shadowpeft.demo.run import count, count_shadow, load_base, training_rows
from shadowpeft.demo.settings import PRETRAINED_SHADOW, Settings
from shadowpeft.embedded import MODEL, SHADOW


@pytest.mark.parametrize("adapt", [with_lora, with_shadow])
def test_only_the_method_trains(adapt):
    base = load_base()
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    model = adapt(base)
    assert 0 < count(model) < sum(weight.numel() for weight in before.values())
    rows = training_rows()[:10]
    examples = encode_all(rows, AutoTokenizer.from_pretrained(MODEL), 128)
    moved = []
    curve = fit(
        model,
        examples,
        0,
        settings=Settings(epochs=1.0, batch=2),
        learning_rate=1e-3,
        folder="unused",
        progress=lambda done, total: moved.append((done, total)),
    )
    assert (curve.steps, len(curve.losses)) == ([5], 1)
    assert moved == [(step, 5) for step in range(1, 6)]
    assert not model.training
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    kept = {weight.data_ptr() for weight in frozen}
    found = [name for name, weight in base.named_parameters() if weight.data_ptr() in kept]
    assert found
    for name, weight in base.named_parameters():
        if weight.data_ptr() in kept and name in before:
            assert torch.equal(weight, before[name]), name


def test_a_pretrained_shadow_is_the_larger_one():
    """Catches a folder that is not used."""
    pretrained = with_shadow(load_base(), PRETRAINED_SHADOW, SHADOW)
    assert count(pretrained) > count_shadow(pretrained) > count_shadow(with_shadow(load_base()))
