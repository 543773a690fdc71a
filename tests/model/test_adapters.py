"""Several adapters beside one base: adding, choosing, deleting."""

import pytest
import torch
from accelerate import cpu_offload
from helpers.families import attached, perturb, tiny_model

from shadowpeft import ConfigError, ShadowConfig, UnsupportedModelError, UserError, attach


def test_each_call_chooses_its_adapter(base, ids):
    model = perturb(attach(base, ShadowConfig(alpha=0.5), adapter="a"), seed=1)
    want_a = model(ids).logits
    model.add_adapter("b", ShadowConfig(alpha=0.5, shadow_layers=2, variant="peft"))
    want_b = perturb(model, seed=2)(ids).logits
    assert not torch.allclose(want_a, want_b, atol=1e-3)
    assert torch.equal(model(ids, adapter="a").logits, want_a)
    assert torch.equal(model(ids, adapter="b").logits, want_b)
    assert model(ids).logits.equal(want_b), "the newest adapter is the active one"
    model.set_adapter("a")
    assert model(ids).logits.equal(want_a)
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {"a"}
    tokens = {name: model.generate(ids, adapter=name, max_new_tokens=6, do_sample=False) for name in "ab"}
    uncached = {
        name: model.generate(ids, adapter=name, max_new_tokens=6, do_sample=False, use_cache=False)
        for name in "ab"
    }
    assert all(tokens[name].equal(uncached[name]) for name in "ab")
    assert not tokens["a"].equal(tokens["b"])


@pytest.mark.parametrize("name", ["", "a.b", "default", "keys"])
def test_bad_adapter_names_are_refused(model, name):
    with pytest.raises(ConfigError, match="adapter names"):
        model.add_adapter(name)


def test_a_deleted_adapter_is_gone_and_the_active_one_stays(model, ids):
    want = model(ids).logits
    model.add_adapter("other")
    with pytest.raises(ConfigError, match="is the active one"):
        model.delete_adapter("other")
    model.set_adapter("default")
    model.delete_adapter("other")
    assert list(model.adapters) == ["default"]
    assert torch.equal(model(ids).logits, want)


def test_a_missing_adapter_is_named(model, ids):
    with pytest.raises(ConfigError, match=r"no adapter named 'nope'; there are: default"):
        model(ids, adapter="nope")


def test_one_model_cannot_be_shadow_twice():
    base, other = tiny_model("llama"), tiny_model("llama", seed=4)
    model = attached(base, shadow=other)
    for again in (other, base):
        with pytest.raises(ConfigError, match="already part of the model"):
            model.add_adapter("b", shadow=again)


def test_an_offloaded_base_is_refused_before_the_adapter_is_lost(base):
    cpu_offload(base)
    with pytest.raises(UnsupportedModelError, match="not in memory"):
        attach(base)


def test_the_active_adapter_is_at_hand(model):
    """Catches a property that keeps the adapter it first saw, or invents one."""
    assert model.adapter is model.adapters["default"]
    model.add_adapter("other")
    assert model.adapter is model.adapters["other"]
    model.unload()
    with pytest.raises(UserError, match="unloaded"):
        _ = model.adapter
