"""transformers' `generate` on a shadowed model: caches, assistants, adapters."""

import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.explicit_shadows import EXPLICIT, PAIRS, explicit
from helpers.families import attached, padded, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import close, rows, step_by_step
from packaging.version import Version
from torch import Tensor
from transformers import CompileConfig, DynamicCache, PreTrainedModel, StaticCache, StoppingCriteria
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.generation.streamers import BaseStreamer

from shadowpeft import ShadowConfig, ShadowedModel, UserError, arch, attach
from shadowpeft.arch import versions

GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
# What transformers itself cannot do; the test that meets it proves it on the bare base. Up to some version
# between 5.17 and 5.20 a stock assistant whose every block slides gets a mask shorter than its keys once its
# window is full.
OLD = Version(transformers.__version__) < Version("5.20")
# Its `generate` takes no prompt of embeddings.
TAKES_NO_EMBEDDINGS = {"falcon_h1", "nemotron_h"}


def slides(assistant: PreTrainedModel) -> bool:
    """Whether no block of a model attends to more than a window."""
    return all(
        isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=assistant.config).layers
    )


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
    if shadowed.base._is_stateful:
        for model in (shadowed.base, shadowed):
            with pytest.raises(ValueError, match="not supported with stateful models"):
                model.generate(ids, **settings, assistant_model=assistant)
        return
    if OLD and slides(assistant):
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


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "lfm2", "qwen3_next"])
def test_a_shadowed_model_can_be_the_assistant(family):
    """Catches a sliding or recurrent cache that forgot what a rejected draft must be rolled back to."""
    helper = perturb(attached(tiny_model(family)))
    # A recurrent model may assist, and not be assisted.
    big = tiny_model("llama" if helper.base._is_stateful else family, seed=5)
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


@torch.no_grad()
def new_tokens(model: PreTrainedModel, ids: Tensor, embeds: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    """Generate from ids and from their embeddings; return the new tokens of each."""
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **settings}
    from_ids = model.generate(ids, **settings)[:, ids.shape[1] :]
    return from_ids, model.generate(inputs_embeds=embeds, **settings)


@torch.no_grad()
def test_embeddings_are_generated_from_as_their_ids_are(shadowed: ShadowedModel, model_type: str) -> None:
    """Catches a prompt of embeddings that is refused, or that only one of the two networks reads."""
    ids, mask, _ = padded(rows(), "left")
    embeds = shadowed.get_input_embeddings()(ids)
    for settings in ({"num_beams": 3, "cache_implementation": "static"}, {}):
        want, found = new_tokens(shadowed, ids, embeds, attention_mask=mask, **settings)
        assert torch.equal(found, want)
    both = shadowed.generate(
        ids, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=6, do_sample=False
    )
    assert torch.equal(both[:, : ids.shape[1]], ids)
    with shadowed.disabled():
        bare, found = new_tokens(shadowed, ids, embeds, attention_mask=mask)
    assert torch.equal(found, bare)
    if model_type in TAKES_NO_EMBEDDINGS:
        with pytest.raises(ValueError, match="You passed `inputs_embeds` to"):
            new_tokens(shadowed.base, ids, embeds, attention_mask=mask)
    else:
        stock, _ = new_tokens(shadowed.base, ids, embeds, attention_mask=mask)
        assert torch.equal(bare, stock)
    assert not torch.equal(bare, want)


@torch.no_grad()
def test_embeddings_continue_a_cache() -> None:
    """Catches a cache in which a prompt of embeddings leaves the two halves apart."""
    model, ids = perturb(attached(tiny_model("llama"))), token_ids(1, 12)
    cache, embeds = model.new_cache(), model.get_input_embeddings()(ids)
    model(inputs_embeds=embeds[:, :5], past_key_values=cache)
    out = model(inputs_embeds=embeds[:, 5:], past_key_values=cache)
    close(out.logits, model(ids).logits[:, 5:])
    assert {layer.get_seq_length() for layer in cache.layers} == {12}


def test_an_explicit_shadow_needs_ids() -> None:
    """Catches a shadow with a table of its own that is given another model's embeddings."""
    model = explicit("one width")
    embeds = model.get_input_embeddings()(token_ids(1, 5))
    with pytest.raises(UserError, match="has embeddings of its own and needs input_ids"):
        model.generate(inputs_embeds=embeds, max_new_tokens=2)
    with model.disabled():
        assert model.generate(inputs_embeds=embeds, max_new_tokens=2).shape == (1, 2)


class Tokens(BaseStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.kept: list[int] = []

    def put(self, value: Tensor) -> None:
        self.kept += value.flatten().tolist()

    def end(self) -> None:
        self.kept.append(-1)


# What transformers can be asked for beside its default, on the tiny Qwen3. The tokens of a fresh shadowed
# model are then its base's.
SAME = {
    "sampling": {"do_sample": True, "top_k": 5, "top_p": 0.9, "temperature": 0.7},
    "min_p": {"do_sample": True, "min_p": 0.1},
    "several samples": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 3, "do_sample": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "no cache": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "hybrid": {"cache_implementation": "hybrid"},
    "sliding window": {"cache_implementation": "sliding_window"},
    "room": {"cache_implementation": "static", "max_cache_len": 40},
    "chunks": {"prefill_chunk_size": 4},
    "chunks, static": {"prefill_chunk_size": 4, "cache_implementation": "static"},
    "compile config": {"cache_implementation": "static", "compile_config": CompileConfig(backend="eager")},
    "guidance": {"guidance_scale": 1.5, "negative_prompt_ids": token_ids(1, 4, seed=5)},
    "guidance, no cache": {"guidance_scale": 1.5, "use_cache": False},
    "end tokens": {"eos_token_id": list(range(3, 20))},
    "least tokens": {"min_new_tokens": 4, "eos_token_id": 5},
    "time": {"max_time": 60.0},
    "repetition": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "banned": {"bad_words_ids": [[5]], "suppress_tokens": [3, 4], "sequence_bias": {(6,): -10.0}},
    "allowed": {"prefix_allowed_tokens_fn": lambda batch, tokens: [3, 4, 5]},
    "watermark": {"watermarking_config": {"bias": 2.0, "greenlist_ratio": 0.5}},
    "one process": {"synced_gpus": False},
    "own loop": {"custom_generate": lambda model, tokens, **rest: model._sample(tokens, **rest)},
    "streamer": {"streamer": Tokens()},
}
# What cannot be, and the words that say so. transformers itself says so where the second is not ours.
REFUSED = {
    "early exit": ({"assistant_early_exit": 1}, 'use draft="shadow", or assistant_model=model.detached'),
    "paged": ({"cache_implementation": "paged"}, "continuous batching"),
    "offloaded": ({"cache_implementation": "offloaded"}, "'dynamic' or 'static'"),
    "offloaded static": ({"cache_implementation": "offloaded_static"}, "'dynamic' or 'static'"),
    "quantized": (
        {"cache_implementation": "quantized", "cache_config": {"nbits": 4}},
        "'dynamic' or 'static'",
    ),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "trust_remote_code"),
    "DoLa": ({"dola_layers": "low"}, "trust_remote_code"),
    "beam groups": ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "trust_remote_code"),
    "constraints": ({"force_words_ids": [[5]], "num_beams": 3}, "trust_remote_code"),
    "healing": ({"token_healing": True}, "tokenizer"),
    "a misspelling": ({"max_new_token": 3}, "not used by the model"),
    "mixed batches": ({"adapter_names": ["default"]}, "not used by the model"),
}


def written(model: PreTrainedModel, settings: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """Return the tokens that a model writes, and those that the streamer got, if there is one."""
    torch.manual_seed(0)
    streamer = settings.get("streamer", Tokens())
    streamer.kept.clear()
    tokens = model.generate(token_ids(1, 9), **{"max_new_tokens": 6, "do_sample": False, **settings})
    return tokens.tolist(), list(streamer.kept)


@pytest.fixture(scope="module")
def fresh() -> ShadowedModel:
    """An untrained shadow; tests that share it only read it."""
    return attached(tiny_model("qwen3"))


@pytest.mark.parametrize("name", SAME)
def test_every_way_of_generating_writes_what_the_base_writes(fresh: ShadowedModel, name: str) -> None:
    """Catches a mode that runs one of the two networks otherwise than `forward` does."""
    assert written(fresh, SAME[name]) == written(fresh.base, SAME[name])


@pytest.mark.parametrize("name", REFUSED)
def test_other_ways_of_generating_are_refused(fresh: ShadowedModel, name: str) -> None:
    """Catches a raw error, or an answer without a word, for what a shadowed model does not do."""
    settings, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        written(fresh, settings)


@torch.no_grad()
def test_outputs_of_each_step_are_the_bases() -> None:
    """Catches states, attention or scores of another network."""
    stock, fresh, ids = tiny_model("qwen3"), attached(tiny_model("qwen3")), token_ids(1, 9)
    wanted = ("scores", "logits", "hidden_states", "attentions")
    settings: dict[str, Any] = {f"output_{name}": True for name in wanted}
    for model in (stock, fresh):
        model.set_attn_implementation("eager")
    ours, theirs = (model.generate(ids, **{**GREEDY, **settings}) for model in (fresh, stock))
    for name in wanted:
        flat = [torch.utils._pytree.tree_leaves(out[name]) for out in (ours, theirs)]
        for found, want in zip(*flat, strict=True):
            torch.testing.assert_close(found, want)


@pytest.mark.parametrize("entry", ["generate_batch", "init_continuous_batching", "paged in a config"])
@pytest.mark.parametrize("bare", [False, True])
def test_continuous_batching_is_refused_before_a_thread_starts(entry: str, bare: bool) -> None:
    """Catches empty answers after an error in a thread."""
    model, threads = attached(tiny_model("qwen3")), threading.active_count()
    calls = {
        "generate_batch": lambda: model.generate_batch([[3, 4]], max_new_tokens=2),
        "init_continuous_batching": lambda: model.init_continuous_batching(),
        "paged in a config": lambda: model.generate(token_ids(1, 4), cache_implementation="paged"),
    }
    with model.disabled() if bare else nullcontext(), pytest.raises(UserError, match="continuous batching"):
        calls[entry]()
    with pytest.raises(UserError, match="continuous batching"):
        model.continuous_batching_context_manager()
    assert threading.active_count() == threads


@torch.no_grad()
def test_guidance_and_assistants_keep_the_adapter_of_the_call() -> None:
    """Catches a second run of the model, and a draft's verification, under the active adapter."""
    model = perturb(attached(tiny_model("llama")), seed=1)
    model.add_adapter("b", ShadowConfig(alpha=0.5))
    perturb(model, seed=2)
    ids = token_ids(1, 9)
    for settings in ({"guidance_scale": 1.5}, {"assistant_model": model.detached("default")}):
        call = {"max_new_tokens": 8, "do_sample": False, **settings}
        model.set_adapter("default")
        want = model.generate(ids, **call)
        model.set_adapter("b")
        assert not torch.equal(model.generate(ids, **call), want)
        assert torch.equal(model.generate(ids, adapter="default", **call), want)
        model.set_adapter("default")
        switch = SwitchAfterTwo(model, ids.shape[1])
        assert torch.equal(model.generate(ids, **call, stopping_criteria=[switch]), want)


def compiled() -> tuple[list[Any], dict[str, Any]]:
    """Return a list that gets every graph which torch.compile traces, and the settings of such a generation.

    They compile here too, where transformers leaves compiling to GPUs. A function is the backend, because
    `generate` copies its settings.
    """
    graphs: list[Any] = []

    def keep(graph: Any, _: Any, **__: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    config = CompileConfig(backend=keep)
    config._compile_all_devices = True
    return graphs, {"cache_implementation": "static", "compile_config": config, "do_sample": False}


def two_blocks() -> ShadowedModel:
    """Return a model of two blocks: each more costs seconds of compilation."""
    return perturb(attached(tiny_model("llama", config=tiny_config("llama", num_hidden_layers=2))))


@torch.no_grad()
def test_one_step_is_compiled_for_all_of_a_generation() -> None:
    """Catches a mask that grows by a token at each step, of which each length would be compiled again."""
    model, ids, (graphs, settings) = two_blocks(), token_ids(2, 7), compiled()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    want = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=6, **settings), want)
    assert len(graphs) == 1


@torch.no_grad()
def test_a_shorter_generation_is_not_compiled_anew() -> None:
    """Catches a static cache of another length for every call: each would be compiled again."""
    model, ids, (graphs, settings) = two_blocks(), token_ids(2, 7), compiled()
    model.generate(ids, max_new_tokens=6, **settings)
    assert graphs
    already = len(graphs)
    short = {"max_new_tokens": 3, **settings}
    out = model.generate(ids, **short, return_dict_in_generate=True)
    assert {layer.keys.shape[2] for layer in out[versions.CACHE].layers} == {7 + 6 - 1}
    for prompt in (ids, ids[:, :5]):
        found = model.generate(prompt, **short)
        assert torch.equal(found, model.generate(prompt, max_new_tokens=3, do_sample=False))
    assert len(graphs) == already


class NotCompiled:
    """What `generate` asks of a quantised base's quantizer."""

    is_compileable = False


@pytest.mark.parametrize("reason", ["its kind of quantisation", "parts on a disk"])
@torch.no_grad()
def test_what_cannot_be_compiled_in_the_base_is_not(reason: str) -> None:
    """Catches a compiled step of a base whose layers transformers itself never compiles."""
    model, (graphs, settings) = attached(tiny_model("llama")), compiled()
    if reason == "parts on a disk":
        model.base.hf_device_map = {"model": 0, "lm_head": "disk"}
    else:
        model.base.hf_quantizer = NotCompiled()
    model.generate(token_ids(1, 7), max_new_tokens=3, **settings)
    assert graphs == []
