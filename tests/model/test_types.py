"""Trained weights are float32 beside a base in a lower type, and what is computed has the base's type."""

import copy
import pickle

import pytest
import torch
from helpers.explicit_shadows import PAIRS
from helpers.families import LABELS, TINY, attached, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CHANGES

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.arch import versions
from shadowpeft.pretrain import start

LOW = torch.bfloat16


def lowered(model_type, task="causal-lm", dtype=LOW, config=None):
    """A base of a family in a lower type, its rotary frequencies in float32 as transformers loads them."""
    model = tiny_model(model_type, task, config=config)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def trained(model):
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


ROUTERS = tuple(family.router for family in arch.FAMILIES.values() if family.router)


def types_put_out(model):
    """Note the types that the layers of a model put out while it runs."""
    seen = {}

    def note(name):
        def hook(layer, args, out):
            outs = out if isinstance(out, tuple) else (out,)
            for tensor in outs:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    seen.setdefault(tensor.dtype, []).append(name)

        return hook

    for name, layer in model.named_modules():
        # A router of one expert, which never trains, answers in float32 in transformers itself.
        is_router = any(f".{router}." in f"{name}." for router in ROUTERS)
        if not is_router and next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_hook(note(name))
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", sorted(TINY))
def test_float32_weights_compute_in_the_type_of_the_base(model_type, dtype):
    """Catches a family with a layer that cannot read a lower type, or that puts out float32; a gradient that
    is missing or rounded; a shadow whose cache is wider than the base's.
    """
    model, ids = perturb(attached(lowered(model_type, dtype=dtype))).train(), token_ids(2, 7)
    weights, seen = trained(model), types_put_out(model.adapters)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    out = model(ids, labels=ids, output_shadow_logits=True)
    assert out.logits.dtype == out.shadow_logits.dtype == dtype
    (out.loss * 64).backward()
    inner = torch.float32 if arch.FAMILIES[model_type].widens else dtype
    assert set(seen) == {inner}
    assert {weight.grad.dtype for weight in weights.values()} == {torch.float32}
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in weights.values())
    shadow_layers = model.eval()(ids, use_cache=True).past_key_values.shadow.layers
    kept = [vars(layer).get(name) for layer in shadow_layers for name in ("keys", "values")]
    assert {tensor.dtype for tensor in kept if tensor is not None} == {inner}


@pytest.mark.parametrize("pair", [*sorted(PAIRS), "positions of its own", "experts"])
def test_an_explicit_shadow_computes_in_the_type_of_the_base(pair):
    """Catches embeddings of an explicit shadow that put out float32 or are kept in it for nothing, positions
    that widen what they are added to, and a mixture that cannot run.
    """
    own = {"positions of its own": "gpt2", "experts": "qwen3_moe"}
    if pair in PAIRS:
        configs = [make() for make in PAIRS[pair]]
    else:
        configs = [tiny_config("llama"), tiny_config(own[pair])]
    base, shadow_config = lowered(configs[0].model_type, config=configs[0]), configs[1]
    shadow = tiny_model(shadow_config.model_type, seed=7, config=shadow_config)
    model, ids = perturb(attached(base, ShadowConfig(**CHANGES), shadow=shadow)).train(), token_ids(2, 7)
    adapter, seen = model.adapter, types_put_out(model)
    assert adapter.shadow.embeddings().weight.dtype == LOW
    weights = trained(model)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    model(ids, labels=ids).loss.backward()
    assert set(seen) == {LOW}
    assert {weight.grad.dtype for weight in weights.values() if weight.grad is not None} == {torch.float32}


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_the_answer_is_that_of_weights_in_the_base_s_type(variant):
    """Catches something computed wider in training than in use, where both should round alike."""
    config = ShadowConfig(variant=variant, dropout=0.0, alpha=0.5)
    model, ids = perturb(attached(lowered("qwen3"), config)), token_ids(2, 9)
    with torch.no_grad():
        wide = model(ids, use_cache=False).logits
        truth = perturb(attached(tiny_model("qwen3"), config))
        truth.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
        exact = truth(ids, use_cache=False).logits
        model.adapter.to(LOW)
        narrow = model(ids, use_cache=False).logits
    assert wide.dtype == narrow.dtype == LOW
    assert (wide - narrow).float().norm() < 1.5 * (narrow - exact).norm()
    assert (wide - exact).norm() < 1.5 * (narrow - exact).norm()


def steps(model, ids, rate, count, scaler=None):
    optimizer = torch.optim.AdamW(trained(model).values(), lr=rate, weight_decay=0.0)
    for _ in range(count):
        loss = model(ids, labels=ids[:, 0] % LABELS if model.task != "causal-lm" else ids).loss
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(trained(model).values(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()
    return loss


@pytest.mark.parametrize("rate", [1e-4, 1e-5])
def test_small_steps_move_a_pretrained_backbone(rate):
    """Catches weights in bfloat16, of which 7 to 9 in 10 never move at these rates."""
    shadow, ids = tiny_model("qwen2", seed=7, config=tiny_config("qwen2", hidden_size=24)), token_ids(4, 12)
    model = attached(lowered("llama"), shadow=shadow).train()
    backbone = {name: weight for name, weight in trained(model).items() if ".backbone." in name}
    before = {name: weight.detach().clone() for name, weight in backbone.items()}
    steps(model, ids, rate, count=4)
    moved = sum((weight != before[name]).sum() for name, weight in backbone.items())
    assert moved / sum(weight.numel() for weight in backbone.values()) > 0.99


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_a_float16_base_trains_with_a_gradient_scaler(task):
    """Catches gradients in float16, which a scaler refuses, and losses that are not finite."""
    model, ids = attached(lowered("llama", task, dtype=torch.float16)).train(), token_ids(4, 9)
    before = {name: weight.detach().clone() for name, weight in trained(model).items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    first = steps(model, ids, 1e-2, count=1, scaler=scaler)
    last = steps(model, ids, 1e-2, count=6, scaler=scaler)
    assert last < first
    assert scaler.get_scale() == 256.0
    assert all((weight != before[name]).any() for name, weight in trained(model).items())


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_a_classifier_s_heads_train_in_float32_and_start_as_the_base_s(variant):
    """Catches heads in the base's type, and a fresh classifier that answers otherwise than its base."""
    base, ids = lowered("qwen3", "sequence-classification"), token_ids(3, 6)
    with torch.no_grad():
        bare = base(ids).logits
        model = attached(base, ShadowConfig(variant=variant))
        assert torch.equal(model(ids).logits, bare)
    heads = (model.adapter.score, model.adapter.shadow_score)
    model.train()(ids, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(head.weight.dtype == head.weight.grad.dtype == torch.float32 for head in heads)
    alone = model.eval().detached()
    assert {weight.dtype for weight in alone.parameters()} == {LOW}
    with torch.no_grad():
        shadow = model(ids, output_shadow_logits=True).shadow_logits
        assert (alone(ids).logits - shadow).norm() < 0.05 * shadow.norm()


@pytest.mark.parametrize("distil", [0.0, 0.5])
@pytest.mark.parametrize("skip_logits", [True, False])
def test_losses_take_both_states_in_one_type(distil, skip_logits):
    """Catches a shadow's state in another type than the base's before the head that they share."""
    model, ids = (
        perturb(attached(lowered("gemma2"), ShadowConfig(shadow_distil=distil))).train(),
        token_ids(2, 8),
    )
    out = model(ids, labels=ids, skip_logits=skip_logits, output_shadow_logits=not skip_logits)
    assert out.loss.dtype == torch.float32
    if not skip_logits:
        assert out.logits.dtype == out.shadow_logits.dtype == LOW


def test_gradients_are_as_exact_as_those_of_autocast():
    """Catches a weight or a gradient that is rounded once more than under autocast."""
    ids, found = token_ids(2, 11), {}
    config = ShadowConfig(dropout=0.0)
    for name in ("exact", "own", "autocast"):
        base = lowered("qwen3")
        if name == "exact":
            base = base.double()
        model = perturb(attached(base, config)).train()
        with torch.autocast("cpu", LOW, enabled=name == "autocast"):
            loss = model(ids, labels=ids).loss
        loss.backward()
        found[name] = torch.cat([weight.grad.double().flatten() for weight in trained(model).values()])
    own, autocast = ((found[name] - found["exact"]).norm() for name in ("own", "autocast"))
    assert own < 1.25 * autocast
    assert own < 0.1 * found["exact"].norm()


@pytest.mark.parametrize("explicit", [False, True])
def test_checkpointing_changes_no_bit(explicit):
    """Catches a cast that is not repeated when a block is computed again."""
    ids, found = token_ids(2, 7), []
    for checkpointing in (False, True):
        model = perturb(attached(lowered("llama"), shadow=tiny_model("qwen2", seed=7) if explicit else None))
        if checkpointing:
            versions.recompute_activations(model, use_reentrant=False)
        model.train()(ids, labels=ids).loss.backward()
        found.append([weight.grad for weight in trained(model).values()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.slow
def test_compiles_whole():
    """Catches a layer that a graph cannot hold."""
    model, ids = perturb(attached(lowered("qwen3"))).train(), token_ids(2, 7)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    one, two = (run(ids, labels=ids).loss for run in (model, compiled))
    torch.testing.assert_close(one, two, rtol=1e-2, atol=0)
    two.backward()
    assert {weight.grad.dtype for weight in trained(model).values()} == {torch.float32}


def test_copies_and_pickles_compute_the_same():
    """Catches layers whose class cannot be found again."""
    model, ids = perturb(attached(lowered("gpt2"), shadow=tiny_model("gpt2", seed=7))), token_ids(2, 7)
    with torch.no_grad():
        want = model(ids).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(ids).logits, want)
            own = other.adapter.shadow.embeddings()
            assert other.adapter.shadow.backbone.wpe.beside[0] is own


@pytest.mark.parametrize("explicit", [False, True])
def test_loading_gives_the_base_s_type_frozen_or_float32_to_train_on(explicit, tmp_path):
    """Catches weights that are cast at each token, a file that lost what was trained, a loaded adapter whose
    bfloat16 weights would train, and a resumed one that is rounded.
    """
    model = perturb(attached(lowered("llama"), shadow=tiny_model("qwen2", seed=7) if explicit else None))
    ids, state = (
        token_ids(2, 7),
        {name: weight.clone() for name, weight in model.adapter.state_dict().items()},
    )
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        want = model(ids).logits
    base = model.unload()
    ready = ShadowedModel.from_pretrained(base, tmp_path)
    assert {weight.dtype for weight in ready.adapter.parameters()} == {LOW}
    assert not trained(ready)
    with torch.no_grad():
        assert (ready(ids).logits - want).float().norm() < 0.1 * want.float().norm()
    ready.load_adapter(tmp_path, "more", is_trainable=True)
    assert torch.all(torch.tensor([torch.equal(state[n], w) for n, w in ready.adapter.state_dict().items()]))
    assert {weight.dtype for weight in trained(ready).values()} == {torch.float32}
    ready.set_adapter("default")
    assert not trained(ready)
    ready.set_adapter("more")
    assert trained(ready)
    ready.load_adapter(tmp_path, "asked", dtype=torch.float32)
    assert {weight.dtype for weight in ready.adapter.injections.parameters()} == {torch.float32}
    base = ready.unload()
    model = ShadowedModel.from_pretrained(base, tmp_path, is_trainable=True)
    assert {weight.dtype for weight in trained(model).values()} == {torch.float32}


def test_the_detached_model_has_the_base_s_type(tmp_path):
    """Catches an export in the type of training, twice the size."""
    model = perturb(attached(lowered("llama")))
    alone = model.detached()
    assert {weight.dtype for weight in alone.parameters()} == {LOW}
    alone.save_pretrained(tmp_path)
    assert alone.config.dtype in (LOW, "bfloat16")
    assert type(alone).from_pretrained(tmp_path).dtype == LOW


@pytest.mark.parametrize(
    ("base", "asked", "want"),
    [
        (torch.bfloat16, None, torch.float32),
        (torch.float16, None, torch.float32),
        (torch.float32, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_type_can_be_chosen(base, asked, want):
    """Catches a default narrower than the base, and a choice that is not kept."""
    model = attach(lowered("llama", dtype=base), dtype=asked)
    assert {weight.dtype for weight in trained(model).values()} == {want}
    ids = token_ids(1, 5)
    assert model(ids).logits.dtype == base
    assert {weight.dtype for weight in start.fresh(model.base, ShadowConfig(), asked).parameters()} == {want}


@pytest.mark.parametrize("dtype", [torch.int8, "bfloat16"])
def test_a_type_that_weights_cannot_have_is_refused(dtype, tmp_path):
    """Catches an error of torch's deep in a cast, and a base that stays lent."""
    base = lowered("llama")
    with pytest.raises(ConfigError, match="floating-point type"):
        attach(base, dtype=dtype)
    model = attach(base)
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="floating-point type"):
        model.load_adapter(tmp_path, "more", dtype=dtype)
    base = model.unload()
    with pytest.raises(ConfigError, match="floating-point type"):
        ShadowedModel.from_pretrained(base, tmp_path, dtype=dtype)
    assert all(weight.requires_grad for weight in base.parameters())


def test_a_base_that_is_cast_later_takes_its_adapters_along():
    """Catches a type of computing that was noted once and is out of date."""
    model, ids = perturb(attached(lowered("llama"))), token_ids(1, 5)
    for dtype in (torch.float32, torch.float16, LOW):
        assert model.to(dtype)(ids).logits.dtype == dtype
