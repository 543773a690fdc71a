"""The shadow drafts for its own model."""

import copy
import gc
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.drafts import FEW, GREEDY, PROMPT, draft_from, drafted, p_value, plain
from helpers.explicit_shadows import EXPLICIT, explicit
from helpers.families import TINY, attached, padded, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, _shadowed, close
from helpers.tokenizers import build_tokenizer
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor
from transformers.generation import BaseStreamer

from shadowpeft import ShadowConfig, ShadowedModel, arch
from shadowpeft.arch import versions
from shadowpeft.decoder.cache import ShadowCache, dynamic_cache
from shadowpeft.errors import UserError

VOCAB = 3


@pytest.fixture
def ids() -> Tensor:
    return token_ids(1, PROMPT)


@pytest.fixture(params=FEW, ids="-".join)
def few(request: pytest.FixtureRequest) -> ShadowedModel:
    """One of a few families; tests only read it."""
    return _shadowed(*request.param, "causal-lm")


@pytest.fixture
def llama() -> ShadowedModel:
    return perturb(attached(tiny_model("llama"), CONFIG))


def same_cache(found: ShadowCache, want: ShadowCache) -> None:
    """Compare all keys and values of both halves."""
    assert len(found.layers) == len(want.layers)
    for layer, other in zip(found.layers, want.layers, strict=True):
        # Blocks that read the keys of others keep none.
        assert type(layer) is type(other)
        if layer.keys is None:
            continue
        assert layer.get_seq_length() == other.get_seq_length()
        close(layer.keys, other.keys)
        close(layer.values, other.values)


class Tokens(BaseStreamer):
    """A streamer that keeps what it is given, and fails when it has so many tokens."""

    def __init__(self, most: int | None = None) -> None:
        self.kept: list[Any] = []
        self._most = most

    def put(self, value: Tensor) -> None:
        self.kept.append(value.tolist())
        if len(self.kept) == self._most:
            raise RuntimeError("the reader has gone")

    def end(self) -> None:
        self.kept.append("end")


# The tokens


def test_texts_and_caches_are_those_of_plain_decoding(
    shadowed: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a draft judged by another position's answer, and a rejected token's key in either half."""
    if not shadowed.new_cache().can_crop_each():
        with pytest.raises(UserError, match="cannot be cropped by the token"):
            drafted(shadowed, ids)
        return
    want = plain(shadowed, ids)
    draft_from(monkeypatch, want.sequences, wrong=(12, 13, 18, 24))
    found = drafted(shadowed, ids)
    assert torch.equal(found.sequences, want.sequences)
    same_cache(found[versions.CACHE], want[versions.CACHE])
    # Three tokens to the first wrong draft, one, four, and so on.
    assert (found.draft_report.rounds, found.draft_report.tokens) == (7, 19)


def test_most_families_draft() -> None:
    """Catches a test above that is content with refusals."""
    caches = {name: dynamic_cache(tiny_config(name), tiny_config("llama"), "default") for name in TINY}
    refused = {name for name, cache in caches.items() if not cache.can_crop_each()}
    assert refused == {name for name in TINY if arch.FAMILIES[name].recurs}


@pytest.mark.parametrize("wrong", [(), range(100)], ids=["right", "wrong"])
def test_drafts_that_are_all_right_or_all_wrong(
    few: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    """Catches a cache that is not cropped where nothing is rejected, as sliding windows need it."""
    want = plain(few, ids)
    draft_from(monkeypatch, want.sequences, wrong)
    found = drafted(few, ids)
    assert torch.equal(found.sequences, want.sequences)
    same_cache(found[versions.CACHE], want[versions.CACHE])
    assert found.draft_report.rounds == (19 if wrong else 5)


@pytest.mark.parametrize("tokens", [1, 3, "auto"])
def test_the_shadows_own_drafts_change_no_token(few: ShadowedModel, ids: Tensor, tokens: Any) -> None:
    """Catches an s^(0), a key or a position of a drafted token that is another than in plain decoding."""
    found, want = drafted(few, ids, tokens), plain(few, ids)
    assert torch.equal(found.sequences, want.sequences)
    same_cache(found[versions.CACHE], want[versions.CACHE])


@EXPLICIT
def test_an_explicit_shadow_drafts(
    pair: str, variant: str, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a draft that the shadow does not read with its own embeddings."""
    model = perturb(explicit(pair, variant=variant))
    want = plain(model, ids)
    assert torch.equal(drafted(model, ids).sequences, want.sequences)
    draft_from(monkeypatch, want.sequences, wrong=(14, 20))
    found = drafted(model, ids)
    assert torch.equal(found.sequences, want.sequences)
    same_cache(found[versions.CACHE], want[versions.CACHE])


@pytest.mark.parametrize("settings", [{"inject_from": 2}, {"shadow_layers": 2}, {"unit_state": True}])
def test_settings_of_the_shadow_change_nothing(
    settings: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a state that starts otherwise than in a forward pass."""
    model = perturb(attached(tiny_model("llama"), ShadowConfig(**settings)))
    want = plain(model, ids).sequences
    draft_from(monkeypatch, want, wrong=(15,))
    assert torch.equal(drafted(model, ids).sequences, want)


@pytest.mark.parametrize("wrong", [(), (11, 13)])
def test_drafts_stop_where_rotary_factors_change(
    wrong: Any, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a pass over both sides of the change, and keys of the side before that are kept behind it."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 12
    config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=12)
    model = perturb(attached(tiny_model("phi3", config=config)))
    want = plain(model, ids)
    draft_from(monkeypatch, want.sequences, wrong)
    found = drafted(model, ids)
    assert torch.equal(found.sequences, want.sequences)
    same_cache(found[versions.CACHE], want[versions.CACHE])


def test_a_padded_row_is_read_as_in_plain_decoding(
    few: ShadowedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches positions that count the padding, and a mask that ends before the drafts."""
    row, mask, _ = padded([token_ids(1, 6)[0], token_ids(1, 9)[0]], "left")
    row, mask = row[:1], mask[:1]
    want = plain(few, row, attention_mask=mask)
    draft_from(monkeypatch, want.sequences[:, 3:], wrong=(9, 15))
    found = drafted(few, row, attention_mask=mask)
    assert torch.equal(found.sequences, want.sequences)
    same_cache(found[versions.CACHE], want[versions.CACHE])
    assert found.draft_report.rounds < 10


def test_embeddings_are_a_prompt(llama: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a prompt without ids."""
    embeds, want = llama.get_input_embeddings()(ids), plain(llama, ids).sequences
    draft_from(monkeypatch, want, wrong=(14,))
    found = llama.generate(inputs_embeds=embeds.detach(), draft="shadow", draft_tokens=4, **GREEDY)
    assert torch.equal(found, want[:, PROMPT:])


def test_a_given_cache_is_continued(few: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache of the caller that is not continued, or that keeps recording afterwards."""
    want = plain(few, ids)
    cache = few.new_cache()
    first = drafted(few, ids, past_key_values=cache, max_new_tokens=5).sequences
    draft_from(monkeypatch, want.sequences, wrong=(19,))
    found = drafted(few, first, past_key_values=cache, max_new_tokens=15)
    assert found[versions.CACHE] is cache
    assert torch.equal(found.sequences, want.sequences)
    same_cache(cache, want[versions.CACHE])
    for layer in cache.layers:
        assert not vars(layer).get("record_past")
        assert "update" not in vars(layer)


# Sampling


def test_without_drafts_sampling_draws_as_transformers_does(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches scores that are processed otherwise, or random numbers that are used otherwise."""
    settings: Any = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9}
    torch.manual_seed(5)
    want = plain(llama, ids, **settings).sequences
    torch.manual_seed(5)
    assert torch.equal(drafted(llama, ids, tokens=1, **settings).sequences, want)


@pytest.mark.parametrize(
    "warpers", [{"top_k": 0}, {"top_k": 2, "temperature": 0.7, "repetition_penalty": 1.4}]
)
def test_samples_are_distributed_as_the_attached_model_has_it(warpers: Any) -> None:
    """Catches a residual that is left out, and warpers that act on one side alone."""
    config = tiny_config("llama", vocab_size=VOCAB, bos_token_id=1)
    model = perturb(attached(tiny_model("llama", config=config), CONFIG), std=0.1)
    ids, count, drawn = torch.tensor([[1, 2, 1]]), 3, 400
    settings: Any = {"do_sample": True, "max_new_tokens": count, "pad_token_id": 0, **warpers}
    expected = torch.tensor([probability(model, ids, text, settings) for text in texts(count)])
    torch.testing.assert_close(expected.sum(), torch.tensor(1.0))
    torch.manual_seed(0)
    counts, places = torch.zeros(len(expected)), {text: i for i, text in enumerate(texts(count))}
    accepted = 0
    for _ in range(drawn):
        out = model.generate(ids, draft="shadow", draft_tokens=3, return_dict_in_generate=True, **settings)
        counts[places[tuple(out.sequences[0, 3:].tolist())]] += 1
        accepted += sum(out.draft_report.accepted)
    assert not counts[expected == 0].any()
    assert p_value(counts, drawn * expected) > 0.01
    # Drafts are both taken and rejected, or nothing was tested.
    assert 0.2 * drawn < accepted < 0.95 * drawn


def texts(count: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(VOCAB), repeat=count))


@torch.no_grad()
def probability(model: ShadowedModel, ids: Tensor, text: tuple[int, ...], settings: dict[str, Any]) -> float:
    """Return how likely plain sampling gives a text, by transformers' own processors."""
    config, _ = model._prepare_generation_config(None, **settings)
    config._eos_token_tensor = None
    processors, chance = model._get_logits_processor(generation_config=config, input_ids_seq_length=3), 1.0
    for token in text:
        scores = processors(ids, model(ids).logits[:, -1])
        chance *= float(scores.softmax(-1)[0, token])
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return chance


# What transformers prepares


class Seen(LogitsProcessor):
    """A processor with a state: from its third token on, it forbids the token before the last."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(input_ids[0].tolist())
        if len(self.seen) > 2:
            scores = scores.index_fill(1, input_ids[0, -2:-1], -torch.inf)
        return scores


PREPARED: dict[str, Any] = {
    "repetition": lambda: {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "least tokens": lambda: {"min_new_tokens": 12, "eos_token_id": list(range(3, 60))},
    "several ends": lambda: {"eos_token_id": list(range(3, 20))},
    "time": lambda: {"max_time": 60.0},
    "length": lambda: {"max_length": 17, "max_new_tokens": None},
    "one token": lambda: {"max_new_tokens": 1},
    "banned": lambda: {"bad_words_ids": [[5]], "suppress_tokens": [3, 4], "sequence_bias": {(6,): -10.0}},
    "own": lambda: {"logits_processor": [Seen()]},
    "function": lambda: {"prefix_allowed_tokens_fn": lambda batch, tokens: [3, 4, int(tokens[-1]) // 2 + 3]},
    "guidance": lambda: {"guidance_scale": 1.5, "negative_prompt_ids": token_ids(1, 4, seed=5)},
    "watermark": lambda: {"watermarking_config": {"bias": 2.0, "greenlist_ratio": 0.5}},
    "criterion": lambda: {"stopping_criteria": [lambda ids, scores, **_: ids[:, -1] % 7 == 0]},
    "chunks": lambda: {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("name", PREPARED)
def test_processors_and_criteria_act_as_in_plain_decoding(
    llama: ShadowedModel, ids: Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one that is left out, that acts on another token, or that is asked once more or less."""
    settings, streamer, other = PREPARED[name](), Tokens(), Tokens()
    want = plain(llama, ids, output_scores=True, output_logits=True, streamer=streamer, **settings)
    draft_from(monkeypatch, want.sequences, wrong=(13, 20))
    settings = PREPARED[name]()
    found = drafted(llama, ids, output_scores=True, output_logits=True, streamer=other, **settings)
    assert torch.equal(found.sequences, want.sequences)
    assert other.kept == streamer.kept
    for kept in ("scores", "logits"):
        close(torch.cat(found[kept]), torch.cat(want[kept]))
    same_cache(found[versions.CACHE], want[versions.CACHE])
    if name == "own":
        lengths = [len(seen) for seen in settings["logits_processor"][0].seen]
        assert lengths == list(range(PROMPT, PROMPT + 20))


@pytest.mark.parametrize("draft", [None, "shadow"])
def test_a_stop_string_ends_the_text(ids: Tensor, draft: str | None) -> None:
    """Catches stop strings that are not looked for: their tokenizer is not the model's business."""
    tokenizer = build_tokenizer()
    config = tiny_config("llama", vocab_size=len(tokenizer))
    model = perturb(attached(tiny_model("llama", config=config)))
    letters = [
        i for i in range(len(tokenizer)) if (text := tokenizer.decode([i])).isascii() and text.isalpha()
    ]
    settings: Any = {**GREEDY, "prefix_allowed_tokens_fn": lambda batch, tokens: letters}
    text = model.generate(ids, **settings)
    stop = str(tokenizer.decode(text[0, 15:17]))
    found = model.generate(ids, draft=draft, stop_strings=[stop], tokenizer=tokenizer, **settings)
    assert PROMPT < found.shape[1] <= 17
    assert torch.equal(found, text[:, : found.shape[1]])


def gone_on(
    model: ShadowedModel, cache: ShadowCache, want: Any, tokens: int, run: Callable[..., Any]
) -> None:
    """Go on with a cache from the tokens that a reader got; all of them but the last must be cached."""
    got = PROMPT + tokens
    assert {layer.get_seq_length() for layer in cache.layers} == {got - 1}
    text = want.sequences[:, :got]
    found = run(
        model, text, past_key_values=cache, max_new_tokens=20 - tokens, attention_mask=torch.ones_like(text)
    )
    assert torch.equal(found.sequences, want.sequences)
    same_cache(cache, want[versions.CACHE])


@pytest.mark.parametrize("run", [plain, drafted])
@pytest.mark.parametrize("most", [2, 3, 8])
def test_a_stream_that_breaks_leaves_model_and_cache_usable(
    few: ShadowedModel, ids: Tensor, most: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches tokens that nobody got and that stay in the cache."""
    want = plain(few, ids)
    draft_from(monkeypatch, want.sequences, wrong=(15,))
    cache, streamer = few.new_cache(), Tokens(most)
    with pytest.raises(RuntimeError, match="the reader has gone"):
        run(few, ids, past_key_values=cache, streamer=streamer)
    # The prompt came first.
    gone_on(few, cache, want, most - 1, run)


class Interrupted:
    """A hook of one of the base's blocks that presses Ctrl-C when the block has run so many times."""

    def __init__(self, model: ShadowedModel, block: int, runs: int) -> None:
        self.runs = runs
        self.hook = arch.blocks_of(model.base)[block].register_forward_hook(self.press)

    def press(self, *_: Any) -> None:
        self.runs -= 1
        if self.runs == 0:
            raise KeyboardInterrupt

    def __enter__(self) -> "Interrupted":
        return self

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()


@pytest.mark.parametrize("run", [plain, drafted])
@pytest.mark.parametrize("block", [0, 2, 3])
def test_a_pass_that_is_broken_off_leaves_model_and_cache_usable(
    ids: Tensor, block: int, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a token that some blocks have seen and others have not, in either half."""
    model = perturb(attached(tiny_model("llama"), CONFIG))
    want = plain(model, ids)
    draft_from(monkeypatch, want.sequences, wrong=(15,))
    cache, streamer = model.new_cache(), Tokens()
    with Interrupted(model, block, runs=3), pytest.raises(KeyboardInterrupt):
        run(model, ids, past_key_values=cache, streamer=streamer)
    gone_on(model, cache, want, len(streamer.kept) - 1, run)


def test_a_prompt_that_is_broken_off_leaves_an_empty_cache(ids: Tensor) -> None:
    """Catches half a prompt in the cache."""
    model = perturb(attached(tiny_model("llama"), CONFIG))
    want = plain(model, ids)
    for run in (plain, drafted):
        cache = model.new_cache()
        with Interrupted(model, 2, runs=1), pytest.raises(KeyboardInterrupt):
            run(model, ids, past_key_values=cache)
        assert {layer.get_seq_length() for layer in cache.layers} == {0}
        assert torch.equal(run(model, ids, past_key_values=cache).sequences, want.sequences)


@pytest.mark.parametrize(
    ("family", "room"), [("mistral", None), ("lfm2", None), ("llama", 40)], ids=["window", "state", "static"]
)
def test_a_pass_that_cannot_be_taken_back_is_not_gone_on_from(
    ids: Tensor, family: str, room: int | None
) -> None:
    """Catches an answer from keys of which some are missing."""
    model = perturb(attached(tiny_model(family), CONFIG))
    want, cache = plain(model, ids), model.new_cache(max_length=room)
    with Interrupted(model, 2, runs=4), pytest.raises(KeyboardInterrupt):
        plain(model, ids, past_key_values=cache)
    for again in (partial(plain, model), model):
        with pytest.raises(UserError, match="in a pass when its generation was broken off"):
            again(ids, past_key_values=cache)
    assert torch.equal(plain(model, ids).sequences, want.sequences)
    if room is not None:
        cache.reset()
        assert torch.equal(plain(model, ids, past_key_values=cache).sequences, want.sequences)


def test_the_adapter_of_the_call_drafts(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches drafts, or a pass of the base, under the active adapter."""
    want = plain(llama, ids).sequences
    llama.add_adapter("other", CONFIG)
    perturb(llama, seed=9)
    assert not torch.equal(plain(llama, ids).sequences, want)
    assert torch.equal(drafted(llama, ids, adapter="default").sequences, want)


def test_generations_leave_nothing_behind(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches tensors that outlive their generation, and state on a module."""

    def tensors() -> int:
        gc.collect()
        # By its type: to ask `isinstance` of every object wakes those that warn.
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    before = {name: copy.copy(vars(module)) for name, module in llama.named_modules()}
    for tokens in (4, "auto"):
        drafted(llama, ids, tokens)
    count = tensors()
    for _ in range(20):
        drafted(llama, ids, "auto")
        drafted(llama, ids, 4, do_sample=True)
    assert tensors() == count
    assert {name: vars(module) for name, module in llama.named_modules()} == before


# What is refused

REFUSED: dict[str, tuple[Any, str]] = {
    "number": ({"draft_tokens": -1}, "1 or more"),
    "word": ({"draft": "ngram"}, 'draft must be "shadow"'),
    "no draft": ({"draft": None, "draft_tokens": 3}, 'give draft="shadow"'),
    "assistant": ({"assistant_model": True}, "combined with assistant_model"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 3}, "combined with prompt_lookup_num_tokens"),
    "beams": ({"num_beams": 2}, "combined with num_beams"),
    "several": ({"num_return_sequences": 2, "do_sample": True}, "combined with num_return_sequences"),
    "sliding": ({"cache_implementation": "sliding_window"}, "combined with this cache_implementation"),
    "quantized": ({"cache_implementation": "quantized"}, "combined with this cache_implementation"),
    "no cache": ({"use_cache": False}, "combined with use_cache=False"),
    "attentions": ({"output_attentions": True}, "combined with output_attentions"),
    "states": ({"output_hidden_states": True}, "combined with output_hidden_states"),
    "processes": ({"synced_gpus": True}, "combined with synced_gpus"),
    "own loop": ({"custom_generate": lambda model, ids, **_: ids}, "custom_generate is a loop"),
    "batch": ({"inputs": token_ids(2, PROMPT)}, "got 2 rows"),
    "batch of embeddings": ({"inputs": None, "inputs_embeds": torch.zeros(2, 5, 32)}, "got 2 rows"),
    "context": ({"max_new_tokens": 60}, "need 68 positions, and there are 64"),
    "two adapters": ({"adapter": ["default", "default"]}, "give the name of one"),
    "no such adapter": ({"adapter": "other"}, "no adapter named 'other'"),
    "packed": ({"cu_seq_lens_q": torch.tensor([0, 9])}, "cu_seq_lens_q cannot be combined"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused(
    llama: ShadowedModel, ids: Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a wish that is dropped in silence, and work that is done before it is refused."""
    asked, says = REFUSED[name]
    if asked.get("assistant_model"):
        asked = {"assistant_model": llama.detached()}
    monkeypatch.setattr(llama, "_run_shadowed", None)
    with pytest.raises(UserError, match=says) as error:
        llama.generate(**{"inputs": ids, "draft": "shadow", **GREEDY, **asked})
    assert "\n" not in str(error.value)


def test_a_cache_without_a_shadow_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches a cache that has room for one decoder alone."""
    with pytest.raises(UserError, match=r"made by model\.new_cache"):
        drafted(llama, ids, past_key_values=DynamicCache(config=llama.config))


def test_a_layer_that_cannot_be_cropped_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches recurrent states, which no crop takes back, by what the layer says and not by its family."""
    cache = llama.new_cache()

    class Recurrent(type(cache.layers[-1])):  # type: ignore[misc]
        is_croppable = False

    cache.layers[-1].__class__ = Recurrent
    with pytest.raises(UserError, match="recurrent"):
        drafted(llama, ids, past_key_values=cache)


def test_a_cache_of_another_adapter_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches keys that another adapter's corrections went into."""
    cache = llama.new_cache()
    drafted(llama, ids[:, :5], past_key_values=cache, max_new_tokens=2)
    llama.add_adapter("other", CONFIG)
    calls: list[Any] = [partial(drafted, llama), partial(plain, llama), llama]
    for call in calls:
        with pytest.raises(UserError, match=r"made for adapter 'default'.*runs under 'other'"):
            call(ids, past_key_values=cache)
    drafted(llama, ids, past_key_values=cache, adapter="default")


def test_where_there_is_nothing_to_draft_it_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches drafts of a model that trains, that answers without its shadow, or that cannot write."""
    with llama.disabled(), pytest.raises(UserError, match="inside disabled"):
        drafted(llama, ids)
    llama.train()
    with pytest.raises(UserError, match=r"model\.eval"):
        drafted(llama, ids)
    classifier = attached(tiny_model("llama", "sequence-classification"))
    with pytest.raises(UserError, match="a sequence classifier cannot generate"):
        drafted(classifier, ids)
