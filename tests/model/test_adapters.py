"""Several adapters beside one base: adding, choosing, deleting."""

import pytest
import torch
from accelerate import cpu_offload, init_empty_weights
from helpers.families import attached, perturb, tiny_model

from shadowpeft import (
    CheckpointError,
    ConfigError,
    ShadowConfig,
    ShadowedModel,
    UnsupportedModelError,
    UserError,
    attach,
)


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
    model.set_adapter("default")
    model.delete_adapter("other")
    assert list(model.adapters) == ["default"]
    assert torch.equal(model(ids).logits, want)


def test_the_first_of_the_others_follows_a_deleted_active_adapter(model, ids):
    """Catches a model whose active adapter is gone, and a follower that is active and does not train."""
    want = model(ids).logits
    model.add_adapter("other")
    perturb(model, seed=5)
    with pytest.warns(UserWarning, match="'default' is active now"):
        model.delete_adapter("other")
    assert model.active_adapter == "default"
    assert torch.equal(model(ids).logits, want)
    assert any(weight.requires_grad for weight in model.adapter.parameters())
    model.delete_adapter("default")
    with pytest.raises(ConfigError, match=r"the model has no adapter; add_adapter\(\)"):
        model(ids)
    with model.disabled():
        assert model(ids).logits.shape[:2] == ids.shape
    model.add_adapter("default")
    assert model(ids).logits.shape[:2] == ids.shape


def test_an_adapter_is_loaded_for_inference_unless_it_shall_train(ids, tmp_path):
    """Catches an adapter that trains although it was loaded frozen, also once another call activates it."""
    attached(tiny_model("llama")).save_pretrained(tmp_path)
    frozen = ShadowedModel.from_pretrained(tiny_model("llama"), tmp_path)
    frozen.load_adapter(tmp_path, "again", is_trainable=True)
    trains = {name.split(".")[1] for name, weight in frozen.named_parameters() if weight.requires_grad}
    assert trains == {"again"}
    frozen.set_adapter("default")
    assert not any(weight.requires_grad for weight in frozen.parameters())
    frozen.train()
    with pytest.raises(UserError, match=r"nothing trains in adapter 'default'.*is_trainable=True"):
        frozen(ids, labels=ids)
    with torch.no_grad():
        frozen(ids, labels=ids)
    frozen.eval()(ids, labels=ids)
    frozen.set_adapter("again", inference_mode=True)
    assert not any(weight.requires_grad for weight in frozen.parameters())
    with pytest.raises(ConfigError, match="one adapter answers a call"):
        frozen.set_adapter(["again", "default"])
    frozen.set_adapter("again")
    assert any(weight.requires_grad for weight in frozen.adapter.parameters())
    frozen.delete_adapter("default")
    frozen.add_adapter("default")
    frozen.train()(ids, labels=ids).loss.backward()


def test_parameters_are_counted_as_peft_counts_them(model, capsys):
    ours = sum(weight.numel() for weight in model.adapter.parameters())
    total = ours + sum(weight.numel() for weight in model.base.parameters())
    assert model.get_nb_trainable_parameters() == (ours, total)
    model.print_trainable_parameters()
    share = f"{100 * ours / total:.4f}"
    want = f"trainable params: {ours:,} || all params: {total:,} || trainable%: {share}\n"
    assert capsys.readouterr().out == want


def test_an_adapter_without_weights_beside_a_base_with_them_is_refused(tmp_path):
    """Catches `NotImplementedError` of torch's, and an adapter of unset memory."""
    attached(tiny_model("llama")).save_pretrained(tmp_path)
    calls = (lambda lent: attach(lent), lambda lent: ShadowedModel.from_pretrained(lent, tmp_path))
    for on_meta in (lambda: torch.device("meta"), init_empty_weights):
        for call in calls:
            lent = tiny_model("llama")
            with on_meta(), pytest.raises(UnsupportedModelError, match="has no weights, and the base has"):
                call(lent)
            assert all(weight.requires_grad for weight in lent.parameters())


def test_a_whole_model_on_meta_computes_shapes_and_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = attach(tiny_model("llama"))
        assert model(torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 97)
    with pytest.raises(CheckpointError, match="nothing was written"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


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
