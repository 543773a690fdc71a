"""Methods share one base's weights and nothing else."""

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench import shapes
from shadowpeft.bench.decode.methods import Loader
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.weights import SharedWeights


def test_lent_modules_hold_the_same_weights():
    """Catches a base that is on the device once for every method."""
    base = shapes.build("tiny", CPU, torch.float32, 0)
    weights = SharedWeights(base)
    lent, copied = weights.lend(), weights.copied()
    for name, parameter in base.named_parameters():
        assert lent.get_parameter(name) is parameter
        assert copied.get_parameter(name).data_ptr() != parameter.data_ptr()
    assert not set(map(id, lent.modules())) & set(map(id, base.modules()))
    for model in (lent, copied):
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.config is not base.config
        assert not model.training


@pytest.mark.parametrize(
    "method", ["lora", "lora-merged", "dora-merged", "peft-shadow", "shadow", "detached"]
)
def test_no_method_changes_the_base(method, ids):
    """Catches LoRA that is merged into the weights of all, and layers of PEFT that stay on another's base."""
    base = shapes.build("tiny", CPU, torch.float32, 0)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    want = base(ids).logits
    loader = Loader(SharedWeights(base), Subject(shape="tiny"), None, 0)
    writer = loader.load(DecodeSpec(method, "reference" if method == "shadow" else None))
    for parameter in writer.model.parameters():
        assert not parameter.requires_grad
    # Merging writes to weights, although an untrained adapter writes what was there.
    own = {parameter.data_ptr() for parameter in base.parameters()}
    shared = own & {parameter.data_ptr() for parameter in writer.model.parameters()}
    assert shared == (own if method in ("lora", "peft-shadow", "shadow") else set())
    other = loader.weights.lend()
    assert base.state_dict().keys() == other.state_dict().keys() == before.keys()
    assert all(torch.equal(base.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(base(ids).logits, want)
    assert torch.equal(other(ids).logits, want)
