"""transformers' `generate` on a shadowed model: caches, assistants, adapters."""

from pathlib import Path

import pytest
import torch
import transformers
from helpers.explicit_shadows import EXPLICIT, PAIRS, explicit
from helpers.families import attached, padded, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import close, rows, step_by_step
from packaging.version import Version
from torch import Tensor
from transformers import DynamicCache, StaticCache, StoppingCriteria

from shadowpeft import ShadowConfig, ShadowedModel, UserError, arch, attach
from shadowpeft.arch import versions

GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
# What transformers itself cannot do; the test that meets it proves it on the bare base. Up to some version
# between 5.17 and 5.20 a stock assistant whose every block slides gets a mask shorter than its keys once its
# window is full.
OLD = Version(transformers.__version__) < Version("5.20")
SLIDING_ASSISTANT_FAILS = {"mistral", "gemma2", "gemma3_text"} if OLD else set()


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


@EXPLICIT
@torch.no_grad()
def test_an_explicit_shadow_generates_saves_and_detaches(pair: str, variant: str, tmp_path: Path) -> None:
    """Catches masks built for the wrong half, a lost embedding table, and a head folded without P, its bias
    or its cap.
    """
    model = perturb(explicit(pair, variant=variant))
    ids, mask, positions = padded(rows(), "left")
    expected = model(ids, attention_mask=mask, position_ids=positions, output_shadow_logits=True)
    for cache in (model.new_cache(), model.new_cache(max_length=12)):
        close(
            step_by_step(model, cache, ids, mask=mask, positions=positions, first=6)[mask.bool()],
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


class SwitchAfterTwo(StoppingCriteria):
    """Another thread's set_adapter(), in the middle of a generation."""

    def __init__(self, model, start):
        self.model, self.start = model, start

    def __call__(self, input_ids, scores, **_):
        if input_ids.shape[1] == self.start + 2:
            self.model.active_adapter = "b"
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_generation_keeps_the_adapter_it_started_with(base, ids):
    model = perturb(attach(base, ShadowConfig(alpha=0.5), adapter="a"), seed=1)
    model.add_adapter("b", ShadowConfig(alpha=0.5))
    perturb(model, seed=2)
    model.set_adapter("a")
    want = model.generate(ids, max_new_tokens=8, do_sample=False)
    got = model.generate(
        ids, max_new_tokens=8, do_sample=False, stopping_criteria=[SwitchAfterTwo(model, ids.shape[1])]
    )
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", versions.CACHE_NAMES)
@torch.no_grad()
def test_the_cache_has_two_names(model: ShadowedModel, ids: Tensor, name: str) -> None:
    """Catches a cache that is lost because this or another transformers calls it otherwise."""
    prompt, last = ids[:, :-1], ids[:, -1:]
    expected = model(ids, use_cache=False).logits[:, -1:]
    cache = model.new_cache()
    model(prompt, **{name: cache})
    assert cache.get_seq_length() == prompt.shape[1]
    step = model.prepare_inputs_for_generation(ids, next_sequence_length=1, use_cache=True, **{name: cache})
    assert step["input_ids"].tolist() == last.tolist()
    out = model(**step)
    close(out.logits, expected)
    assert out.cache is cache
    assert out.past_key_values is cache

    settings = {"max_new_tokens": 4, "do_sample": False}
    cache = model.new_cache()
    written = model.generate(ids, **settings, **{name: cache})
    assert torch.equal(written, model.generate(ids, **settings, use_cache=False))
    assert cache.get_seq_length() == written.shape[1] - 1


@pytest.mark.parametrize("name", versions.CACHE_NAMES)
@torch.no_grad()
def test_disabled_hands_the_cache_to_the_base(model: ShadowedModel, ids: Tensor, name: str) -> None:
    """Catches a base that is called by a name it does not know, and writes to a cache of its own."""
    with model.disabled():
        cache = DynamicCache(config=model.config)
        model(ids[:, :-1], **{name: cache})
        found = model(ids[:, -1:], **{name: cache}).logits
        close(found, model(ids, use_cache=False).logits[:, -1:])
    assert cache.get_seq_length() == ids.shape[1]


def test_a_cache_under_both_names_is_refused(model: ShadowedModel, ids: Tensor) -> None:
    """Catches one of two caches that is dropped."""
    both = {name: model.new_cache() for name in versions.CACHE_NAMES}
    for call in (model, model.generate, model.prepare_inputs_for_generation):
        with pytest.raises(UserError, match="give the cache once"):
            call(ids, **both)


def test_caches_that_do_not_fit_are_refused(model, ids):
    """Catches halves of a cache that part: filled by the bare base, or made for a shadow of another depth."""
    with model.disabled(), pytest.raises(UserError, match="of the base's own"):
        model(ids, past_key_values=model.new_cache())
    cache = model.new_cache()
    model.add_adapter("deeper", ShadowConfig(shadow_layers=2))
    with pytest.raises(UserError, match="a shadow of 1 blocks, the adapter's has 2"):
        model(ids, past_key_values=cache)
    with pytest.raises(UserError, match="not both"):
        model.generate(
            ids, past_key_values=model.new_cache(), cache_implementation="static", max_new_tokens=2
        )


def test_a_cache_without_room_for_the_shadow_is_refused(model, ids):
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=20)):
        with pytest.raises(UserError, match=r"model\.new_cache\(\)"):
            model(ids, past_key_values=cache)
    with pytest.raises(UserError, match="'quantized'"):
        model.generate(ids, max_new_tokens=2, cache_implementation="quantized")


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_shadowed_model_can_be_the_assistant(family):
    """Catches a sliding cache that forgot what a rejected proposal must be rolled back to."""
    big, helper = tiny_model(family, seed=5), perturb(attached(tiny_model(family)))
    ids = token_ids(1, 9)
    want = big.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(big.generate(ids, max_new_tokens=10, do_sample=False, assistant_model=helper), want)


@pytest.mark.skipif(OLD, reason="the stock model itself is wrong here before 5.20")
def test_phi3_recomputes_where_its_rotary_factors_change():
    """Catches keys cached under the short factors and read under the long ones."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 12
    base = tiny_model(
        "phi3", config=tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=12)
    )
    model, ids = perturb(attached(base)), token_ids(1, 9)
    greedy = {"max_new_tokens": 10, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), model.generate(ids, use_cache=False, **greedy))
