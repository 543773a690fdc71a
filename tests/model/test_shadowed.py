"""`ShadowedModel` as its users see it: attach, forward, train, compile, threads, unload."""

import copy
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CASES, CHANGES, gradients, loss_and_gradients
from torch import nn

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, UnsupportedModelError, UserError, attach
from shadowpeft.decoder.loan import Loan


@pytest.mark.parametrize(("model_type", "variant"), CASES)
@torch.no_grad()
def test_a_fresh_shadow_changes_nothing_and_a_moved_one_does(model_type: str, variant: Any) -> None:
    """Catches a shadow that disturbs the base before training, and one that is not wired in at all."""
    # Frozen as `attach` leaves it: for weights that ask for gradients torch may multiply in another order.
    base, ids = tiny_model(model_type).requires_grad_(False), token_ids(2, 9)
    expected = base(ids).logits
    model = attached(base, ShadowConfig(variant=variant, dropout=0.0))
    assert torch.equal(model(ids).logits, expected)
    assert (perturb(model)(ids).logits - expected).abs().mean() > 0.01


@torch.no_grad()
def test_the_bare_base_is_reachable(shadowed: ShadowedModel, model_type: str) -> None:
    """Catches `disabled()` leaving a trace of the shadow in the output."""
    ids = token_ids(2, 9)
    with shadowed.disabled():
        bare = shadowed(ids).logits
    assert torch.equal(bare, tiny_model(model_type).requires_grad_(False)(ids).logits)


@pytest.mark.parametrize(("model_type", "variant"), CASES)
def test_training_moves_the_whole_shadow_and_nothing_else(model_type: str, variant: Any) -> None:
    """Catches a trainable tensor that gets no gradient (dead, or an error under DDP), a base that trains, a
    loss that stays.
    """
    model = attached(
        tiny_model(model_type), ShadowConfig(variant=variant, dropout=0.0, shadow_loss_weight=0.5)
    ).train()
    ids, base_before = token_ids(2, 10), copy.deepcopy(model.base.state_dict())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(4):
        loss, found = loss_and_gradients(model, ids, ids)
        losses.append(loss)
        assert [name for name, gradient in found.items() if gradient is None] == []
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    # W_up, zero at the start, blocks every way into the injection for one step; by now nothing may be still.
    assert [name for name, gradient in found.items() if not gradient.any()] == []
    assert all(
        parameter.grad is None and not parameter.requires_grad for parameter in model.base.parameters()
    )
    assert all(torch.equal(value, base_before[name]) for name, value in model.base.state_dict().items())


def test_a_call_does_not_ask_who_else_holds_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a compiled graph that breaks when another model is collected."""
    model, ids = attached(tiny_model("llama")), token_ids(1, 5)
    monkeypatch.setattr(Loan, "is_shared", lambda *_: pytest.fail("the list of loans was read"))
    model(ids, labels=ids)
    model.train()(ids, labels=ids).loss.backward()


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_a_compiled_model_computes_and_trains_the_same(variant: Any) -> None:
    """Catches a graph break: the frame must travel as an argument that torch.compile can trace."""
    # Three blocks are the least that cross an update; each more costs seconds of compilation.
    base, ids = tiny_model("llama", config=tiny_config("llama", num_hidden_layers=3)), token_ids(2, 9)
    model = perturb(attached(base, ShadowConfig(variant=variant, **CHANGES))).train()
    loss, expected = loss_and_gradients(model, ids, ids)
    model.zero_grad()
    compiled_loss = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss.detach(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


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


def test_disabled_keeps_the_accumulation_count(model, base, ids):
    """Catches a bare loss that ignores what the Trainer counted."""
    with model.disabled():
        out = model(ids, labels=ids, num_items_in_batch=torch.tensor(40))
    torch.testing.assert_close(out.loss, base(ids, labels=ids).loss * 20 / 40)


def test_a_copy_made_while_disabled_is_not_disabled(model, base, ids):
    with model.disabled():
        other = copy.deepcopy(model)
        assert torch.equal(model(ids).logits, base(ids).logits)
    assert torch.equal(other(ids).logits, model(ids).logits)


def test_a_refused_attach_leaves_the_base_as_it_was(base):
    """Catches a base that stays frozen after an error."""
    for wrong in ({"config": ShadowConfig(inject_from=9)}, {"adapter": "a.b"}):
        with pytest.raises(ConfigError):
            attach(base, **wrong)
        assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"base": "gpt2"}, UnsupportedModelError),
        ({"config": {"r": 8}}, ConfigError),
        ({"config": ShadowConfig(shadow_attention_heads=3)}, ConfigError),
        ({"config": ShadowConfig(shadow_head_dim=7)}, ConfigError),
        ({"config": ShadowConfig(shadow_key_value_heads=3)}, ConfigError),
    ],
)
def test_what_attach_cannot_use_is_a_typed_error_and_leaves_the_base_alone(base, wrong, error):
    with pytest.raises(error):
        attach(**{"base": base, **wrong})
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize(
    "call", ["set_adapter", "delete_adapter", "save_pretrained", "detached", "new_cache", "set_impl"]
)
def test_everything_says_that_it_was_unloaded(model, call):
    model.unload()
    with pytest.raises(UserError, match="unloaded"):
        getattr(model, call)("default")


@pytest.mark.parametrize(
    "wrong", ["org/model", Path("folder"), nn.Linear(2, 2)], ids=lambda wrong: type(wrong).__name__
)
def test_an_adapter_is_loaded_beside_a_loaded_model(wrong, tmp_path):
    """Catches an id in place of the model, which ended in a trace."""
    with pytest.raises(UnsupportedModelError, match="expected a loaded transformers model, got "):
        ShadowedModel.from_pretrained(wrong, tmp_path)


def test_a_shadowed_model_is_no_base(base, tmp_path):
    model = attach(base)
    for again in (attach, lambda given: ShadowedModel.from_pretrained(given, tmp_path)):
        with pytest.raises(UserError, match="this model has a shadow already: add_adapter"):
            again(model)
    assert model.base is base


def test_an_unloaded_model_says_so(model, base, ids):
    assert model.unload() is base
    with pytest.raises(UserError, match="unloaded"):
        model(ids)


def test_threads_with_different_lengths_and_adapters_do_not_meet(base):
    """Catches per-forward state on a module: two lengths would clash, two adapters would mix."""
    model = perturb(attach(base, ShadowConfig(alpha=0.5), adapter="a"), seed=1)
    model.add_adapter("b", ShadowConfig(alpha=0.5, variant="paper"))
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
    """Catches activations kept alive on a module: the graph dies with the output, and no module gained an
    attribute.
    """
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


@pytest.mark.parametrize("variant", ["normed", "paper"])
def test_compiles_without_graph_breaks(variant, ids):
    base = tiny_model("qwen3", config=tiny_config("qwen3", num_hidden_layers=3))
    model = perturb(attached(base, ShadowConfig(variant=variant, alpha=0.5)))
    want = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids, use_cache=False).logits, want)


@torch.no_grad()
def test_an_exported_graph_computes_the_same_and_hands_out_no_cache():
    """Catches an error of torch's about an unknown container where one sentence would do."""
    model, ids = perturb(attached(tiny_model("llama"))).eval(), token_ids(2, 7)
    graph = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}).module()
    torch.testing.assert_close(graph(input_ids=ids, use_cache=False).logits, model(ids).logits)
    with pytest.raises(UserError, match="export with use_cache=False"):
        torch.export.export(model, (), {"input_ids": ids})
