"""Everything a shadowed model promises, for each family of `arch.FAMILIES`. Each test's docstring names the bug it catches."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.families import (
    LABELS,
    TINY,
    VOCAB,
    attached,
    padded,
    perturb,
    tiny_config,
    tiny_model,
    token_ids,
)
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Cache,
    LlamaModel,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
)

from shadowpeft import ShadowConfig, ShadowedModel, UnsupportedModelError, UserError, arch
from shadowpeft.train.arguments import recompute_activations

FAMILIES = sorted(arch.FAMILIES)
# Every family in the variant that reads through its norms; the others on one whose frame travels as an argument, and one where it does not.
CASES = [(name, "normed") for name in FAMILIES] + [
    (name, variant) for variant in ("paper", "peft") for name in ("bloom", "llama")
]
CHANGES: dict[str, Any] = {"dropout": 0.0, "r": 4, "update_width": 5, "shadow_loss_weight": 0.5}
CONFIG = ShadowConfig(**CHANGES)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

# What transformers itself cannot do; the test that meets it proves it on the bare base. Up to some version between 5.17 and 5.23
# a stock assistant whose every block slides gets a mask shorter than its keys once its window is full.
OLD = Version(transformers.__version__) < Version("5.23")
SLIDING_ASSISTANT_FAILS = {"mistral", "gemma2", "gemma3_text"} if OLD else set()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def model_type(case: tuple[str, Any]) -> str:
    return case[0]


@pytest.fixture(scope="module")
def config(case: tuple[str, Any]) -> ShadowConfig:
    return ShadowConfig(variant=case[1], **CHANGES)


@pytest.fixture(scope="module")
def shadowed(model_type: str, config: ShadowConfig) -> ShadowedModel:
    """A perturbed language model in evaluation mode; tests that share it only read it."""
    return perturb(attached(tiny_model(model_type), config))


@pytest.fixture(scope="module")
def classifier(model_type: str, config: ShadowConfig) -> ShadowedModel:
    """A perturbed classifier in evaluation mode; tests that share it only read it."""
    return perturb(attached(tiny_model(model_type, "sequence-classification"), config))


def close(actual: Tensor, expected: Tensor) -> None:
    """Compare float32 logits whose spread is about 1 and on which the shadow acts by about 0.1."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def rows(count: int = 2, length: int = 12) -> list[Tensor]:
    """Texts of different lengths, all longer than the sliding window."""
    return [token_ids(1, length - 4 * i, seed=i)[0] for i in range(count)]


def gradients(model: PreTrainedModel) -> dict[str, Tensor | None]:
    """Copies of the gradients of all that trains; `None` where there is none."""
    trained = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    return {name: gradient if gradient is None else gradient.clone() for name, gradient in trained.items()}


def loss_and_gradients(
    model: ShadowedModel, ids: Tensor, labels: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    model.zero_grad()
    loss = model(ids, labels=labels).loss
    loss.backward()
    return loss.detach(), gradients(model)


def recompute_reentrantly(model: ShadowedModel) -> None:
    """Switch gradient checkpointing on as we do not, under the name it goes by: transformers renamed it between 5.17 and 5.23."""
    renamed = hasattr(PreTrainedModel, "activation_checkpointing_enable")
    (model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable)(
        {"use_reentrant": True}
    )


def step_by_step(
    model: PreTrainedModel,
    cache: Cache,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    first: int = 1,
) -> Tensor:
    """Feed `first` tokens at once and the others one at a time; return the logits of all."""
    mask, answers = torch.ones_like(ids) if mask is None else mask, []
    for start, stop in [(0, first), *((t, t + 1) for t in range(first, ids.shape[1]))]:
        given = {} if positions is None else {"position_ids": positions[:, start:stop]}
        out = model(
            ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True, **given
        )
        answers.append(out.logits)
    return torch.cat(answers, dim=1)


@contextmanager
def watching_sizes(largest: list[int]) -> Iterator[None]:
    """Note in the last entry the most values of any parameter that a module is given meanwhile."""

    def note(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        largest[-1] = max(largest[-1], 0 if parameter is None else parameter.numel())

    handle = register_module_parameter_registration_hook(note)
    yield
    handle.remove()


# The table


def test_every_family_has_a_tiny_model_of_its_own_kind() -> None:
    """Catches a new row of the table that no test would run."""
    assert sorted(TINY) == FAMILIES
    assert {name: make().model_type for name, make in TINY.items()} == {name: name for name in FAMILIES}


def test_an_unknown_family_is_refused_by_a_list_of_the_known() -> None:
    """Catches a late, obscure failure inside a layout the table does not describe."""
    model = MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=VOCAB))
    with pytest.raises(UnsupportedModelError) as error:
        attached(model)
    assert all(family.name in str(error.value) for family in arch.FAMILIES.values())


def test_a_headless_class_of_a_known_family_is_refused() -> None:
    """Catches attaching to a decoder without head, whose logits nobody could compute."""
    with pytest.raises(
        UnsupportedModelError,
        match="expected a LlamaForCausalLM or LlamaForSequenceClassification, got LlamaModel",
    ):
        attached(LlamaModel(tiny_config("llama")))


def test_opt_with_projected_embeddings_is_refused() -> None:
    """Catches opt-350m, whose head is narrower than its blocks."""
    with pytest.raises(UnsupportedModelError, match="word_embed_proj_dim"):
        attached(tiny_model("opt", config=tiny_config("opt", word_embed_proj_dim=16)))


# Attach


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_a_fresh_shadow_changes_nothing_and_a_moved_one_does(model_type: str, variant: Any) -> None:
    """Catches a shadow that disturbs the base before training, and one that is not wired in at all."""
    base, ids = tiny_model(model_type), token_ids(2, 9)
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
    assert torch.equal(bare, tiny_model(model_type)(ids).logits)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_implicit_shadow_draws_no_table_of_embeddings(model_type: str) -> None:
    """Catches drawing (and holding) a table of the base's vocabulary only to drop it, and a configuration left with the size of none."""
    drawn, largest = [], []
    for vocab in (VOCAB, 5 * VOCAB):
        base = tiny_model(model_type, config=tiny_config(model_type, vocab_size=vocab, pad_token_id=2))
        largest.append(0)
        with watching_sizes(largest):
            model = attached(base, CONFIG)
        drawn.append(model.adapters["default"].shadow.state_dict())
        for config in (
            model.adapters["default"].shadow.backbone.config,
            model.detached().config,
            base.config,
        ):
            assert (config.vocab_size, config.pad_token_id) == (vocab, 2)
        assert (
            arch.token_embedding_of(model.detached()).weight.shape
            == arch.token_embedding_of(base).weight.shape
        )
    assert largest[0] == largest[1] > 0
    assert list(drawn[0]) == list(drawn[1])
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())


# Training


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_training_moves_the_whole_shadow_and_nothing_else(model_type: str, variant: Any) -> None:
    """Catches a trainable tensor that gets no gradient (dead, or an error under DDP), a base that trains, a loss that stays."""
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


@pytest.mark.parametrize("model_type", TINY)
def test_our_variant_takes_a_quarter_of_the_mlp_and_the_published_ones_all_of_it(model_type: str) -> None:
    """Catches a default that a family reads elsewhere, or that reaches the published variants."""
    whole = arch.mlp_width(tiny_model(model_type).config)

    def width(**settings: Any) -> int | None:
        model = attached(tiny_model(model_type), ShadowConfig(**settings))
        return arch.mlp_width(model.adapters["default"].shadow.backbone.config)

    assert width(variant="paper") == width(variant="peft") == whole
    if whole is None:
        return
    own = width()
    assert own is not None
    assert own % 8 == 0
    assert abs(own - whole / 4) < 8
    assert width(shadow_intermediate_size=24) == 24


# Nodes of the graph that hand a sum on; a product is one of them where its other factor is a number.
HANDS_ON = {
    "AddBackward0",
    "ViewBackward0",
    "ReshapeAliasBackward0",
    "UnsafeViewBackward0",
    "ToCopyBackward0",
    "MulBackward0",
}


def addends(out: Tensor, ends: set[Any]) -> set[Any]:
    """The nodes of the graph whose results are added up to a tensor; those of `ends` are not taken apart further."""
    found, left = set(), [out.grad_fn]
    while left:
        node = left.pop()
        before = [earlier for earlier, _ in node.next_functions if earlier is not None]
        if node in ends or node.name() not in HANDS_ON or (node.name() == "MulBackward0" and len(before) > 1):
            found.add(node)
        else:
            left += before
    return found


def crossing(base: PreTrainedModel, block: nn.Module) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Run a base; return what entered a block, what it put out, and the nodes of what its norms put out, by their names in the block."""
    crossed: list[Tensor] = []
    put_out: dict[str, Any] = {}

    def note(_: nn.Module, args: Any, out: Any) -> None:
        crossed.extend((args[0], out[0] if isinstance(out, tuple) else out))

    handles = [block.register_forward_hook(note)]
    for name, norm in block.named_modules():
        if "norm" in type(norm).__name__.lower():
            handles.append(
                norm.register_forward_hook(lambda _, __, x, name=name: put_out.update({name: x.grad_fn}))
            )
    base(token_ids(2, 7), use_cache=False)
    for handle in handles:
        handle.remove()
    entered, left = crossed
    return entered, left, put_out


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_names_every_norm_behind_a_blocks_layers(name: str) -> None:
    """Catches a new family whose attention's and MLP's outputs pass norms that its row does not name: corrections would not follow them."""
    base = tiny_model(name)
    for block in arch.blocks_of(base):
        entered, left, norms = crossing(base, block)
        assert norms
        added = addends(left, {entered.grad_fn, *norms.values()})
        assert entered.grad_fn in added
        assert len(added) == 3, "what entered, what the attention writes and what the MLP writes"
        assert {norm for norm, node in norms.items() if node in added} == set(
            arch.FAMILIES[name].output_norms
        )


def test_a_mixture_of_experts_gets_a_dense_shadow() -> None:
    """Catches shadow experts that no token chose, and so no gradient reached."""
    model = attached(tiny_model("qwen3_moe"), CONFIG)
    assert any("experts" in name for name, _ in model.base.named_parameters())
    assert not any("experts" in name for name, _ in model.adapters.named_parameters())


def test_gradient_checkpointing_changes_no_gradient(model_type: str, config: ShadowConfig) -> None:
    """Catches a recomputed block that sees another shadow state, and checkpointing that is silently off."""
    model, ids, runs = perturb(attached(tiny_model(model_type), config)).train(), token_ids(2, 9), []
    block = arch.blocks_of(model.base)[1]
    read = arch.input_norm_of(block, arch.FAMILIES[model_type])  # which the shadow runs too
    leaf = next(module for module in block.modules() if not [*module.children()] and module is not read)
    hook = leaf.register_forward_pre_hook(lambda *_: runs.append(1))
    loss, expected = loss_and_gradients(model, ids, ids)
    assert len(runs) == 1
    recompute_activations(model)
    loss_again, found = loss_and_gradients(model, ids, ids)
    assert len(runs) == 3
    hook.remove()
    torch.testing.assert_close(loss_again, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_reentrant_checkpointing_is_refused() -> None:
    """Catches a shadow that silently gets no gradient, because nothing that enters its first block has one."""
    with pytest.raises(UserError, match="use_reentrant=False"):
        recompute_reentrantly(attached(tiny_model("llama")))


# The cache


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_cached_equals_uncached_token_by_token(shadowed: ShadowedModel, kind: str, side: str) -> None:
    """Catches halves of the cache that part, masks of the wrong length, and positions that ignore padding."""
    if side == "none":
        ids, mask, positions, first = token_ids(2, 12), None, None, 1
    else:
        ids, mask, positions = padded(rows(), side)
        first = 6
    expected = shadowed(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    cache = shadowed.new_cache(max_length=12 if kind == "static" else None)
    found = step_by_step(shadowed, cache, ids, mask, positions, first)
    real = torch.ones_like(ids) if mask is None else mask
    close(found[real.bool()], expected[real.bool()])


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generation_is_the_same_with_every_cache(shadowed: ShadowedModel, beams: int) -> None:
    """Catches a cache that `generate` fills, reorders or masks otherwise than the model's own."""
    ids, mask, _ = padded(rows(), "left")
    settings = {**GREEDY, "attention_mask": mask, "num_beams": beams}
    expected = shadowed.generate(ids, **settings, use_cache=False)
    with shadowed.disabled():
        bare = shadowed.generate(ids, **settings)
    assert (bare.logits[0] - expected.logits[0]).abs().mean() > 0.05
    for kind in ("dynamic", "static"):
        found = shadowed.generate(ids, **settings, cache_implementation=kind)
        assert torch.equal(found.sequences, expected.sequences)
        close(torch.stack(found.logits), torch.stack(expected.logits))


@torch.no_grad()
def test_assisted_by_its_own_shadow_it_writes_the_same(shadowed: ShadowedModel, model_type: str) -> None:
    """Catches a rejected draft that is rolled back in one half of the cache only."""
    ids, assistant, settings = token_ids(1, 9), shadowed.detached(), {**GREEDY, "max_new_tokens": 12}
    assistant.generation_config.update(
        num_assistant_tokens=3, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0
    )
    if model_type in SLIDING_ASSISTANT_FAILS:
        for model in (shadowed.base, shadowed):
            with pytest.raises(RuntimeError, match="must match the size of tensor"):
                model.generate(ids, **settings, assistant_model=assistant)
        return
    expected = shadowed.generate(ids, **settings)
    found = shadowed.generate(ids, **settings, assistant_model=assistant)
    assert torch.equal(found.sequences, expected.sequences)
    assert not torch.equal(assistant.generate(ids, **settings).sequences, expected.sequences), (
        "no draft was ever rejected"
    )


# Detach, save, unload


@torch.no_grad()
def test_detached_is_a_stock_model_that_computes_the_shadow(
    shadowed: ShadowedModel, model_type: str, tmp_path: Path
) -> None:
    """Catches a detached model that needs us, computes something else, or loses a tensor on its way through a file."""
    ids, alone = token_ids(2, 9), shadowed.detached()
    assert type(alone).__name__ == arch.FAMILIES[model_type].causal
    assert type(alone).__module__.startswith("transformers.models.")
    expected = shadowed(ids, output_shadow_logits=True).shadow_logits
    close(alone(ids).logits, expected)
    alone.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, alone(ids).logits)
    assert again.generate(ids, max_new_tokens=3, do_sample=False).shape == (2, 12)


@torch.no_grad()
def test_detached_shares_no_storage(shadowed: ShadowedModel) -> None:
    """Catches training the detached model altering the base or the adapter it came from."""
    before = copy.deepcopy(shadowed.state_dict())
    for parameter in shadowed.detached().parameters():
        parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in shadowed.state_dict().items())


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
@torch.no_grad()
def test_a_saved_adapter_comes_back_whole(
    model_type: str, config: ShadowConfig, task: arch.Task, tmp_path: Path
) -> None:
    """Catches a tensor or setting that saving or loading drops: both sides are perturbed, so neither is trivially the base."""
    model, ids = perturb(attached(tiny_model(model_type, task), config)), token_ids(2, 9)
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(tiny_model(model_type, task), tmp_path)
    found, expected = (m(ids, output_shadow_logits=True) for m in (again, model))
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.shadow_logits, expected.shadow_logits)


# transformers gives every block these two attributes when checkpointing is first switched on, and leaves them there.
_CHECKPOINTING = {"gradient_checkpointing", "_gradient_checkpointing_func"}


def facts(base: PreTrainedModel) -> dict[str, Any]:
    """All that `unload` must give back as it was."""
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    return {
        "class": type(base),
        "config": base.config.to_dict(),
        "generation": base.generation_config.to_dict(),
        "training": {name: module.training for name, module in base.named_modules()},
        "classes": {name: type(module) for name, module in base.named_modules()},
        "hooks": {name: [len(vars(module)[hook]) for hook in hooks] for name, module in base.named_modules()},
        "attributes": {
            name: sorted(set(vars(module)) - _CHECKPOINTING) for name, module in base.named_modules()
        },
        "checkpointing": {
            name: vars(module).get("gradient_checkpointing", False) for name, module in base.named_modules()
        },
        "trainable": {name: parameter.requires_grad for name, parameter in base.named_parameters()},
    }


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
def test_unload_gives_the_base_back_as_it_was_lent(
    model_type: str, config: ShadowConfig, checkpoints: int
) -> None:
    """Catches a flag, hook, config field or weight of the base that training, generating or checkpointing left changed."""
    base, ids = tiny_model(model_type), token_ids(1, 8)
    for i, parameter in enumerate(base.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    arch.blocks_of(base)[1].train()
    before, weights = facts(base), copy.deepcopy(base.state_dict())
    model = perturb(attached(base, config)).train()
    for _ in range(checkpoints):
        recompute_activations(model)
    loss_and_gradients(model, ids, ids)
    model.eval().generate(ids, max_new_tokens=2, do_sample=False)
    assert model.unload() is base
    assert facts(base) == before
    assert list(base.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())


# Classification


@torch.no_grad()
def test_a_fresh_classifier_is_the_base(model_type: str, config: ShadowConfig) -> None:
    """Catches pooling at another token than transformers does, with padding and without, and a second head where one is to answer."""
    base = tiny_model(model_type, "sequence-classification")
    ids, mask, _ = padded(rows(), "right")
    expected = base(ids, attention_mask=mask).logits
    model = attached(base, config)
    assert expected.shape == (2, LABELS)
    for kwargs in ({"attention_mask": mask}, {}):
        found = model(ids, output_shadow_logits=True, **kwargs)
        assert torch.equal(found.logits, base(ids, **kwargs).logits)
        assert found.shadow_logits.any()
    assert not torch.equal(perturb(model)(ids, attention_mask=mask).logits, expected)


@torch.no_grad()
def test_a_classifier_does_not_see_the_side_of_the_padding(classifier: ShadowedModel) -> None:
    """Catches pooling a padding token, or attending to one, when texts are padded on the left."""
    results = []
    for ids, mask, positions in (padded(rows(), "left"), padded(rows(), "right")):
        results.append(
            classifier(ids, attention_mask=mask, position_ids=positions, output_shadow_logits=True)
        )
    close(results[0].logits, results[1].logits)
    close(results[0].shadow_logits, results[1].shadow_logits)
    for i, row in enumerate(rows()):
        close(classifier(row[None]).logits[0], results[0].logits[i])


def test_both_classification_heads_learn(model_type: str, config: ShadowConfig) -> None:
    """Catches a head that is shared, frozen or left out of the loss."""
    model = perturb(attached(tiny_model(model_type, "sequence-classification"), config)).train()
    _, found = loss_and_gradients(model, token_ids(2, 9), torch.tensor([0, 2]))
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    assert {name.split(".")[2] for name in found} >= {"score", "shadow_score"}
    assert not torch.equal(
        found["adapters.default.score.weight"], found["adapters.default.shadow_score.weight"]
    )
    assert all(parameter.grad is None for parameter in model.base.parameters())


@torch.no_grad()
def test_a_detached_classifier_computes_the_shadow(
    classifier: ShadowedModel, model_type: str, tmp_path: Path
) -> None:
    """Catches a detached classifier with the base's head, or one that pools elsewhere."""
    ids, mask, _ = padded(rows(), "right")
    alone = classifier.detached()
    assert type(alone).__name__ == arch.FAMILIES[model_type].classifier
    close(
        alone(ids, attention_mask=mask).logits,
        classifier(ids, attention_mask=mask, output_shadow_logits=True).shadow_logits,
    )
    alone.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again(ids, attention_mask=mask).logits, alone(ids, attention_mask=mask).logits)


# Explicit shadows

# Base and shadow: of one width, narrower (so that P exists), of another family, and with the heads that only their own family has.
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "one width": (
        lambda: tiny_config("qwen3"),
        lambda: tiny_config("qwen3", num_hidden_layers=2, layer_types=["full_attention"] * 2),
    ),
    "narrower": (lambda: tiny_config("qwen3"), lambda: tiny_config("qwen3", hidden_size=16)),
    "another family": (lambda: tiny_config("llama"), lambda: tiny_config("qwen2", hidden_size=24)),
    "sliding beside full": (
        lambda: tiny_config("llama"),
        lambda: tiny_config("mistral", hidden_size=16, tie_word_embeddings=True),
    ),
    "soft cap": (lambda: tiny_config("gemma2"), lambda: tiny_config("gemma2", hidden_size=16)),
    "head with a bias": (lambda: tiny_config("gptj"), lambda: tiny_config("gptj", n_embd=16)),
}


def explicit(pair: str, task: arch.Task = "causal-lm", variant: Any = "normed") -> ShadowedModel:
    """A base with another model's decoder as its shadow."""
    base_config, shadow_config = (make() for make in PAIRS[pair])
    base = tiny_model(base_config.model_type, task, config=base_config)
    shadow = tiny_model(shadow_config.model_type, seed=7, config=shadow_config)
    return attached(base, ShadowConfig(variant=variant, **CHANGES), shadow=shadow)


EXPLICIT = pytest.mark.parametrize(
    ("pair", "variant"), [*((pair, "normed") for pair in PAIRS), ("narrower", "paper"), ("narrower", "peft")]
)


@EXPLICIT
def test_an_explicit_shadow_trains_without_its_embeddings(pair: str, variant: str) -> None:
    """Catches an explicit shadow whose table trains (most of its parameters), or whose other tensors do not."""
    model, ids = explicit(pair, variant=variant), token_ids(2, 10)
    assert torch.equal(model(ids).logits, model.base(ids).logits)
    table = model.adapters["default"].shadow.embeddings().weight
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad], lr=3e-3
    )
    losses = []
    for _ in range(3):
        loss, found = loss_and_gradients(model.train(), ids, ids)
        losses.append(loss)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []
    assert table.grad is None
    assert all(parameter.grad is None for parameter in model.base.parameters())


@EXPLICIT
@torch.no_grad()
def test_an_explicit_shadow_generates_saves_and_detaches(pair: str, variant: str, tmp_path: Path) -> None:
    """Catches masks built for the wrong half, a lost embedding table, and a head folded without P, its bias or its cap."""
    model = perturb(explicit(pair, variant=variant))
    ids, mask, positions = padded(rows(), "left")
    expected = model(ids, attention_mask=mask, position_ids=positions, output_shadow_logits=True)
    for cache in (model.new_cache(), model.new_cache(max_length=12)):
        close(
            step_by_step(model, cache, ids, mask, positions, first=6)[mask.bool()],
            expected.logits[mask.bool()],
        )
    written = [
        model.generate(ids, attention_mask=mask, **GREEDY, use_cache=cached).sequences
        for cached in (False, True)
    ]
    assert torch.equal(*written)
    model.save_pretrained(tmp_path)
    base_config = PAIRS[pair][0]()
    again = ShadowedModel.from_pretrained(tiny_model(base_config.model_type, config=base_config), tmp_path)
    assert torch.equal(again(ids, attention_mask=mask, position_ids=positions).logits, expected.logits)
    alone = model.detached()
    assert type(alone).__name__ == arch.FAMILIES[PAIRS[pair][1]().model_type].causal
    close(
        alone(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()],
        expected.shadow_logits[mask.bool()],
    )


@pytest.mark.parametrize("pair", ["narrower", "another family"])
@torch.no_grad()
def test_an_explicit_shadow_classifies_alone(pair: str) -> None:
    """Catches a detached classifier whose head is folded without P or that pads by the shadow's own settings."""
    model = perturb(explicit(pair, "sequence-classification"))
    ids, mask, _ = padded(rows(), "right")
    close(
        model.detached()(ids, attention_mask=mask).logits,
        model(ids, attention_mask=mask, output_shadow_logits=True).shadow_logits,
    )


# Compilation


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_a_compiled_model_computes_and_trains_the_same(variant: Any) -> None:
    """Catches a graph break: the frame must travel as an argument that torch.compile can trace."""
    model, ids = (
        perturb(attached(tiny_model("llama"), ShadowConfig(variant=variant, **CHANGES))).train(),
        token_ids(2, 9),
    )
    loss, expected = loss_and_gradients(model, ids, ids)
    model.zero_grad()
    compiled_loss = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids).loss
    compiled_loss.backward()
    torch.testing.assert_close(compiled_loss.detach(), loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)
