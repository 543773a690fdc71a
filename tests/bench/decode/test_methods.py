"""The methods that write are those that a user would load."""

import pytest
import torch
from helpers.benches import CPU
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM

from shadowpeft import ShadowConfig, attach
from shadowpeft.bench import shapes
from shadowpeft.bench.decode.methods import Loader
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.weights import SharedWeights
from shadowpeft.embedded import MODEL, SHADOW


def test_lora_is_on_all_linear_layers_and_merged_is_on_none(loader, ids):
    """Catches a merged LoRA that still pays for its layers, and one of another rank."""
    base = loader.load(DecodeSpec("base")).model
    lora = loader.load(DecodeSpec("lora")).model
    layers = [module for module in lora.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 7 * 4
    assert {layer.r["default"] for layer in layers} == {8}
    for method in ("lora-merged", "dora-merged"):
        merged = loader.load(DecodeSpec(method)).model
        assert type(merged) is type(base)
        assert [type(module) for module in merged.modules()] == [type(module) for module in base.modules()]
        assert (merged(ids).logits - base(ids).logits).norm() < 1e-4 * base(ids).logits.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_has_the_base_s_type(dtype):
    """Catches float32 layers beside a bfloat16 base, which cast at every step."""
    loader = Loader(SharedWeights(shapes.build("tiny", CPU, dtype, 0)), Subject(shape="tiny"), None, 0)
    for spec in (DecodeSpec("lora"), DecodeSpec("peft-shadow"), DecodeSpec("shadow", "reference")):
        assert {parameter.dtype for parameter in loader.load(spec).model.parameters()} == {dtype}


def test_implementations_have_the_same_weights_and_correct_something(loader, ids):
    """Catches a comparison of two different models, and one of models that are just their base."""
    one, other = (loader.load(DecodeSpec("shadow", impl)).model for impl in ("reference", "auto"))
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    base = loader.load(DecodeSpec("base")).model
    assert (one(ids).logits - base(ids).logits).norm() > 0.01 * base(ids).logits.norm()


def test_detached_is_the_same_shadow_alone(loader, ids):
    model = loader.load(DecodeSpec("shadow", "reference")).model
    alone = loader.load(DecodeSpec("detached")).model
    want = model(ids, output_shadow_logits=True).shadow_logits
    assert (alone(ids).logits - want).norm() < 1e-4 * want.norm()


def test_draft_asks_generate_for_drafts(loader):
    assert loader.load(DecodeSpec("draft", "auto", 4)).options == {"draft": "shadow", "draft_tokens": 4}
    assert loader.load(DecodeSpec("shadow", "auto")).options == {}


def test_an_untrained_shadow_starts_from_what_is_named(loader):
    """Catches `--shadow` that is ignored."""
    explicit = Loader(loader.weights, Subject(shape="tiny", shadow="tiny"), None, 0).shadowed("reference")
    assert len(explicit.adapter.shadow.backbone.layers) == 4
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    subject = Subject(model=str(MODEL), shadow=str(SHADOW))
    pretrained = Loader(SharedWeights(base), subject, None, 0).shadowed("reference")
    want = attach(base, ShadowConfig(), SHADOW).adapter.shadow.state_dict()
    found = pretrained.adapter.shadow.state_dict()
    assert all(torch.equal(found[name], value) for name, value in want.items())


def test_a_trained_adapter_is_loaded_as_it_is(loader, tmp_path, ids):
    saved = loader.shadowed("reference")
    saved.save_pretrained(tmp_path / "adapter")
    subject = Subject(model="tiny", adapter=str(tmp_path / "adapter"))
    model = Loader(loader.weights, subject, None, 5).shadowed("reference")
    assert torch.equal(model(ids).logits, saved(ids).logits)
