"""`ShadowedModel` as its users hold it: adapters, threads, modes, losses, and nothing left behind."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from helpers.families import perturb
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, DynamicCache, StaticCache

from shadowpeft import ConfigError, ShadowConfig, UnsupportedModelError, UserError, attach

CHANGES = {"alpha": 0.5}


def test_a_fresh_attach_changes_nothing_and_a_trained_one_does(base, ids):
    """Catches a W_up that does not start at zero, and a comparison that could not fail."""
    want = base(ids).logits
    fresh = attach(base)
    assert torch.equal(fresh(ids).logits, want)
    assert not torch.allclose(perturb(fresh)(ids).logits, want, atol=1e-2)


def test_the_base_itself_is_untouched_while_attached(base, ids):
    """Catches wrapping that changes what other holders of the base compute."""
    before, keys, blocks = base(ids).logits, list(base.state_dict()), list(base.model.layers)
    model = perturb(attach(base))
    model(ids)
    assert torch.equal(base(ids).logits, before)
    assert list(base.state_dict()) == keys
    assert list(base.model.layers) == blocks


def test_disabled_is_the_bare_base_bit_for_bit(model, base, ids):
    before = model(ids).logits
    with model.disabled(), model.disabled():
        assert torch.equal(model(ids).logits, base(ids).logits)
        assert (
            model.generate(ids, max_new_tokens=4, do_sample=False).tolist()
            == base.generate(ids, max_new_tokens=4, do_sample=False).tolist()
        )
    assert torch.equal(model(ids).logits, before)


def test_loss_is_equation_9(model, base, ids):
    """Catches a loss on the last shadow state instead of the first, a missing shift, a wrong weight."""
    labels = ids.clone()
    labels[0, :4] = -100
    out = model(ids, labels=labels, output_shadow_logits=True)
    cross_entropy = torch.nn.functional.cross_entropy
    own = cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    shadow = cross_entropy(
        out.shadow_logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(out.shadow_loss, shadow)
    weight = {"normed": 0.5, "paper": 0.05}[model.adapter.settings.variant]
    torch.testing.assert_close(out.loss, own + weight * shadow)
    first_state = model.adapters["default"].shadow(ids, None, None, None, None)
    torch.testing.assert_close(out.shadow_logits, base.lm_head(first_state))


def test_accumulation_by_item_count_equals_one_batch(model, ids):
    """Catches a mean of means: rows with different numbers of labels must weigh by their labels."""
    model.train()
    for adapter in model.adapters.values():
        adapter.eval()  # no dropout
    labels = ids.clone()
    labels[0, :8] = -100
    count = (labels[:, 1:] != -100).sum()
    whole = torch.autograd.grad(
        model(ids, labels=labels).loss, list(model.adapters.parameters()), allow_unused=True
    )
    parts = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(2)]
    summed = torch.autograd.grad(sum(parts), list(model.adapters.parameters()), allow_unused=True)
    for one, two in zip(whole, summed, strict=True):
        torch.testing.assert_close(one, two)


def test_each_call_chooses_its_adapter(base, ids):
    model = perturb(attach(base, ShadowConfig(**CHANGES), adapter="a"), seed=1)
    want_a = model(ids).logits
    model.add_adapter("b", ShadowConfig(**CHANGES, shadow_layers=2, variant="peft"))
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


def test_a_refused_attach_leaves_the_base_as_it_was(base):
    """Catches a base that stays frozen after an error."""
    for wrong in ({"config": ShadowConfig(inject_from=9)}, {"adapter": "a.b"}):
        with pytest.raises(ConfigError):
            attach(base, **wrong)
        assert all(parameter.requires_grad for parameter in base.parameters())


def test_disabled_keeps_the_accumulation_count(model, base, ids):
    """Catches a bare loss that ignores what the Trainer counted."""
    with model.disabled():
        out = model(ids, labels=ids, num_items_in_batch=torch.tensor(40))
    torch.testing.assert_close(out.loss, base(ids, labels=ids).loss * 20 / 40)


def test_a_missing_adapter_is_named(model, ids):
    with pytest.raises(ConfigError, match=r"no adapter named 'nope'; there are: default"):
        model(ids, adapter="nope")


def test_threads_with_different_lengths_and_adapters_do_not_meet(base):
    """Catches per-forward state on a module: two lengths would clash, two adapters would mix."""
    model = perturb(attach(base, ShadowConfig(**CHANGES), adapter="a"), seed=1)
    model.add_adapter("b", ShadowConfig(**CHANGES, variant="paper"))
    perturb(model, seed=2)
    jobs = [(torch.randint(2, 97, (1 + i % 3, 5 + 3 * i)), "ab"[i % 2]) for i in range(6)]
    want = [model(ids, adapter=name).logits for ids, name in jobs]
    wrong: list[int] = []

    def work(number: int) -> None:
        ids, name = jobs[number]
        for _ in range(15):
            bare = number % 3 == 0
            if bare:
                with model.disabled():
                    model(ids)
            if not torch.equal(model(ids, adapter=name).logits, want[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_retained_after_a_forward(model, ids):
    """Catches activations kept alive on a module: the graph dies with the output, and no module gained an attribute."""
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    out = model(ids, labels=ids)
    graph = weakref.ref(out.logits)
    del out
    gc.collect()
    assert graph() is None
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_gradients_reach_exactly_the_shadow(model, base, ids):
    """Catches an unfrozen base tensor and a dead trainable one."""
    model.train()
    model(ids, labels=ids).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert trained
    assert all(name.startswith("adapters.") for name in trained)


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_only_the_injection_learns_first_without_the_auxiliary_loss(base, ids, variant):
    """Holds the known fact that with lambda = 0 a fresh shadow's only gradient is that of W_up."""
    model = attach(base, ShadowConfig(variant=variant, shadow_loss_weight=0.0)).train()
    model(ids, labels=ids).loss.backward()
    moving = {
        name.split(".")[-2]
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert moving == {"up"}


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_blocks_below_the_first_injection_need_no_backward(base, ids, variant):
    """Catches a gradient path into blocks that `inject_from` leaves alone."""
    model = perturb(attach(base, ShadowConfig(variant=variant, inject_from=2)))
    states = model(ids, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, False, True, True]


def test_copies_and_pickles_compute_the_same_alone(model, ids):
    """Catches a copy whose view still runs the original's blocks."""
    want = model(ids).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids).logits, want)
        with torch.no_grad():
            other.base.model.layers[0].mlp.down_proj.weight.zero_()
        assert not torch.allclose(other(ids).logits, want)
        assert torch.equal(model(ids).logits, want)


def test_compiles_without_graph_breaks(model, ids):
    want = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids, use_cache=False).logits, want)


def test_a_cache_without_room_for_the_shadow_is_refused(model, ids):
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=20)):
        with pytest.raises(UserError, match=r"model\.new_cache\(\)"):
            model(ids, past_key_values=cache)
    with pytest.raises(UserError, match="'quantized'"):
        model.generate(ids, max_new_tokens=2, cache_implementation="quantized")


def test_crop_reorder_and_reset_act_on_both_halves(model, ids):
    """Catches halves of the cache that part company."""
    cache = model.new_cache()
    model(ids, past_key_values=cache, use_cache=True)
    cache.reorder_cache(torch.tensor([1, 0]))
    step = torch.tensor([[5], [6]])
    want = model(torch.cat([ids.flip(0), step], dim=1)).logits[:, -1]
    got = model(step, past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    assert {layer.get_seq_length() for layer in cache.layers} == {12}
    cache.reset()
    assert (
        len({layer.get_seq_length() for layer in cache.layers}) == 1
    )  # 0, or 12 zeroed positions before transformers 5.23


def test_logits_to_keep_and_plain_tuples(model, ids):
    full = model(ids, output_shadow_logits=True)
    last = model(ids, logits_to_keep=2, output_shadow_logits=True)
    torch.testing.assert_close(last.logits, full.logits[:, -2:])
    torch.testing.assert_close(last.shadow_logits, full.shadow_logits[:, -2:])
    assert torch.equal(model(ids, return_dict=False)[0], full.logits)


def test_embeddings_can_be_given_in_place_of_ids(model, base, ids):
    torch.testing.assert_close(model(inputs_embeds=base.model.embed_tokens(ids)).logits, model(ids).logits)


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_mixed_types_need_autocast(base, ids, variant):
    """Catches a bare matmul error deep in a block where one sentence would do."""
    model = attach(base.to(torch.bfloat16), ShadowConfig(variant=variant), dtype=torch.float32)
    with pytest.raises(UserError, match="autocast"):
        model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(ids, labels=ids)
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_an_unloaded_model_says_so(model, base, ids):
    assert model.unload() is base
    with pytest.raises(UserError, match="unloaded"):
        model(ids)


def test_unsupported_models_are_refused_with_the_list(base):
    with pytest.raises(UnsupportedModelError, match="expected a Qwen3ForCausalLM"):
        attach(base.model)
    with pytest.raises(UserError, match="before attach"):
        attach(base).resize_token_embeddings(200)


PROBLEMS = {
    "regression": (1, torch.tensor([0.3, -1.2])),
    "single": (5, torch.tensor([3, 1])),
    "several": (4, torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0]])),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_classification_losses_agree_with_transformers(problem, ids):
    """Catches a wrong loss per problem type, and a problem type written into a configuration."""
    labels_count, labels = PROBLEMS[problem]
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=labels_count)).eval()
    model = attach(base, ShadowConfig(variant="paper", shadow_loss_weight=0.0))
    out = model(ids, labels=labels)
    assert model.config.problem_type is None
    torch.testing.assert_close(out.loss, base(ids, labels=labels).loss)
    halves = [
        model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=torch.tensor(labels.numel())).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(halves), out.loss)


def test_classifiers_pool_the_last_token_on_either_side(ids):
    """Catches pooling of a padding token, which left padding provokes."""
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_config(qwen3_config(num_labels=3)).eval()
    model = perturb(attach(base, ShadowConfig(**CHANGES)))
    want = model(ids[:1, :6], output_shadow_logits=True)
    pad = torch.zeros(1, 4, dtype=torch.long)
    mask = torch.ones(1, 6, dtype=torch.long)
    right = model(torch.cat([ids[:1, :6], pad], 1), torch.cat([mask, pad], 1), output_shadow_logits=True)
    positions = torch.tensor([[0, 0, 0, 0, *range(6)]])
    left = model(
        torch.cat([pad, ids[:1, :6]], 1), torch.cat([pad, mask], 1), positions, output_shadow_logits=True
    )
    for got in (right, left):
        torch.testing.assert_close(got.logits, want.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got.shadow_logits, want.shadow_logits, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="cannot generate"):
        model.generate(ids)


def test_explicit_shadow_must_fit_the_base(base):
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(qwen3_config(vocab_size=50))
    with pytest.raises(UnsupportedModelError, match="share one vocabulary"):
        attach(base, shadow=other)
