"""Drafting over a static cache, run as it is and compiled."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.drafts import FEW, GREEDY, PROMPT, draft_from, drafted, p_value, plain
from helpers.families import TINY, attached, padded, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, _shadowed, close
from torch import Tensor
from transformers import CompileConfig, PretrainedConfig
from transformers.generation import BaseStreamer

from shadowpeft import ShadowedModel, arch
from shadowpeft.arch import versions
from shadowpeft.decoder.cache import ShadowCache, static_cache
from shadowpeft.errors import UserError
from shadowpeft.model import drafting, static_steps

STATIC: dict[str, Any] = {"cache_implementation": "static"}


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


def same_keys(found: ShadowCache, want: ShadowCache) -> None:
    """Compare the tokens that a static cache holds with those of a dynamic one, in both halves.

    Layers of the dynamic one that slide hold the last tokens alone.
    """
    for layer, other in zip(found.layers, want.layers, strict=True):
        # Blocks that read the keys of others keep none.
        if other.keys is None:
            continue
        length, kept = int(layer.get_seq_length()), other.keys.shape[2]
        assert length == other.get_seq_length()
        close(layer.keys[:, :, length - kept : length], other.keys)
        close(layer.values[:, :, length - kept : length], other.values)


def can_draft(config: PretrainedConfig) -> bool:
    """Whether no layer keeps anything but keys and values by the token."""
    return static_cache(config, tiny_config("llama"), "default", 40, slides=False).can_crop_each()


def compiled(fullgraph: bool = True) -> tuple[list[Any], dict[str, Any]]:
    """Return a list that gets every graph that torch.compile traces, and the settings of a generation."""
    graphs: list[Any] = []

    def keep(graph: Any, _: Any, **__: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    config = CompileConfig(backend=keep, fullgraph=fullgraph)
    config._compile_all_devices = True
    return graphs, {**STATIC, "compile_config": config}


def eager_rounds(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the settings with which a greedy round is one step, and let it run uncompiled."""
    patch.setattr(static_steps, "_compiled", lambda step, config: step)
    config = CompileConfig()
    config._compile_all_devices = True
    return {**STATIC, "compile_config": config}


# The tokens


def test_texts_and_caches_are_those_of_plain_decoding(
    shadowed: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a rejected token, or padding, that is read in either half, and a window that hides too few."""
    if not can_draft(shadowed.base.config):
        with pytest.raises(UserError, match="cannot be cropped by the token"):
            drafted(shadowed, ids, **STATIC)
        return
    try:
        plain(shadowed.base, ids, **STATIC)
    except (RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"transformers itself fails: {error}")
    want = plain(shadowed, ids)
    draft_from(monkeypatch, want.sequences, wrong=(12, 13, 18, 24))
    found = drafted(shadowed, ids, **eager_rounds(monkeypatch))
    assert torch.equal(found.sequences, want.sequences)
    same_keys(found[versions.CACHE], want[versions.CACHE])
    assert (found.draft_report.rounds, found.draft_report.tokens) == (7, 19)


def test_most_families_draft() -> None:
    """Catches a test above that is content with refusals."""
    refused = {name for name in TINY if not can_draft(tiny_config(name))}
    keep_an_index = {"deepseek_v32", "glm_moe_dsa"}
    assert refused == {name for name in TINY if arch.FAMILIES[name].recurs or name in keep_an_index}


@pytest.mark.parametrize("wrong", [(), range(100)], ids=["right", "wrong"])
@pytest.mark.parametrize("tokens", [1, 4, 23, "auto"])
@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "at once"])
def test_every_length_of_drafts_writes_the_same(
    llama: ShadowedModel,
    ids: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Sequence[int],
    tokens: Any,
    at_once: bool,
) -> None:
    """Catches a pass that reads beyond the room of the cache, or of the positions."""
    settings = eager_rounds(monkeypatch) if at_once else STATIC
    want = plain(llama, ids, max_new_tokens=55)
    draft_from(monkeypatch, want.sequences, wrong)
    found = drafted(llama, ids, tokens, max_new_tokens=55, **settings)
    assert torch.equal(found.sequences, want.sequences)
    same_keys(found[versions.CACHE], want[versions.CACHE])


@pytest.mark.parametrize("head", [False, True])
def test_the_same_tokens_are_drafted(
    llama: ShadowedModel, ids: Tensor, head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches drafts that are read from another state, or without the head that was taught for them."""
    if head:
        torch.manual_seed(0)
        torch.nn.init.normal_(llama.adapter.new_draft_head(4).up.weight, std=2.0)
    scores: dict[str, list[Tensor]] = {"apart": [], "static": []}
    monkeypatch.setattr(drafting._Steps, "head", _noting(drafting._Steps.head, scores["apart"]))
    monkeypatch.setattr(static_steps, "_head_step", _noting(static_steps._head_step, scores["static"]))
    drafted(llama, ids)
    drafted(llama, ids, **STATIC)
    one, other = (torch.cat(found) for found in scores.values())
    close(one, other)
    scores["static"].clear()
    drafted(llama, ids, **eager_rounds(monkeypatch))
    # A round in one step drafts behind the end of the text, too: in the rounds of the last three tokens.
    close(one[:-3], torch.cat(scores["static"])[: len(one) - 3])
    assert len(one) > 20
    if head:
        llama.adapter.draft_head = None
        drafted(llama, ids)
        assert (scores["apart"][-1] - one[-1]).abs().max() > 1


def _noting(head: Any, noted: list[Tensor]) -> Any:
    def run(*given: Any) -> Tensor:
        noted.append(head(*given).clone())
        return noted[-1]

    return run


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("most", [2, 6, 20])
def test_what_the_shadow_read_is_counted(
    llama: ShadowedModel, ids: Tensor, most: int, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a report of the tokens that were of use in the place of those that were read."""
    settings = eager_rounds(monkeypatch) if at_once else STATIC
    read: list[Tensor] = []
    monkeypatch.setattr(static_steps, "_shadow_step", _noting(static_steps._shadow_step, read))
    found = drafted(llama, ids, 8, max_new_tokens=most, **settings)
    assert found.draft_report.shadow_steps == len(read)
    assert len(read) == 8 * found.draft_report.rounds or not at_once


@pytest.mark.parametrize(
    "given",
    [{"repetition_penalty": 1.5}, {"do_sample": True}, {"draft_tokens": "auto"}, {"disable_compile": True}],
)
def test_what_decides_on_a_draft_is_asked_for_each(
    llama: ShadowedModel, ids: Tensor, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a round in one step where a processor, a draw or the pace would be left out of it."""
    settings = {**eager_rounds(monkeypatch), "draft": "shadow", "draft_tokens": 4, **GREEDY}

    def forbidden(*_: Any) -> None:
        raise AssertionError("a round was one step")

    monkeypatch.setattr(static_steps, "_round_step", forbidden)
    llama.generate(ids, **{**settings, **given})
    with pytest.raises(AssertionError, match="a round was one step"):
        llama.generate(ids, **settings)


def test_learned_positions_end_with_the_text(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches padding that asks for a position which does not exist."""
    model = perturb(attached(tiny_model("gpt2")))
    want = plain(model, ids, max_new_tokens=55).sequences
    draft_from(monkeypatch, want, wrong=(61,))
    for settings in (STATIC, eager_rounds(monkeypatch)):
        assert torch.equal(drafted(model, ids, 8, max_new_tokens=55, **settings).sequences, want)


def test_a_padded_row_is_read_as_in_plain_decoding(
    few: ShadowedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches positions that count the padding, and a mask that forgets it."""
    row, mask, _ = padded([token_ids(1, 6)[0], token_ids(1, 9)[0]], "left")
    row, mask = row[:1], mask[:1]
    want = plain(few, row, attention_mask=mask)
    draft_from(monkeypatch, want.sequences[:, 3:], wrong=(9, 15))
    found = drafted(few, row, attention_mask=mask, **STATIC)
    assert torch.equal(found.sequences, want.sequences)
    assert found.draft_report.rounds < 10


def test_embeddings_are_a_prompt(llama: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cache that has room for no prompt of embeddings."""
    embeds, want = llama.get_input_embeddings()(ids), plain(llama, ids).sequences
    draft_from(monkeypatch, want, wrong=(14,))
    settings = {**GREEDY, **STATIC, "draft_tokens": 4}
    found = llama.generate(inputs_embeds=embeds.detach(), draft="shadow", **settings)
    assert torch.equal(found, want[:, PROMPT:])


class Breaks(BaseStreamer):
    """A reader who goes after the prompt and so many tokens."""

    def __init__(self, most: int) -> None:
        self.left = most

    def put(self, value: Tensor) -> None:
        if not self.left:
            raise RuntimeError("the reader has gone")
        self.left -= 1

    def end(self) -> None: ...


def test_a_given_cache_is_continued_and_used_again(
    llama: ShadowedModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches tokens that a broken stream or an earlier text leaves in the cache."""
    want, cache = plain(llama, ids), llama.new_cache(max_length=40)
    draft_from(monkeypatch, want.sequences, wrong=(15,))
    with pytest.raises(RuntimeError, match="the reader has gone"):
        drafted(llama, ids, past_key_values=cache, streamer=Breaks(4))
    got = PROMPT + 3
    assert {int(layer.get_seq_length()) for layer in cache.layers} == {got}
    found = drafted(llama, want.sequences[:, : got + 1], past_key_values=cache, max_new_tokens=16)
    assert found[versions.CACHE] is cache
    assert torch.equal(found.sequences, want.sequences)
    same_keys(cache, want[versions.CACHE])
    cache.reset()
    assert torch.equal(drafted(llama, ids, past_key_values=cache).sequences, want.sequences)


PREPARED: dict[str, Any] = {
    "repetition": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "several ends": {"eos_token_id": list(range(3, 20))},
    "banned": {"bad_words_ids": [[5]], "suppress_tokens": [3, 4], "sequence_bias": {(6,): -10.0}},
    "criterion": {"stopping_criteria": [lambda ids, scores, **_: ids[:, -1] % 7 == 0]},
    "chunks": {"prefill_chunk_size": 4},
}


@pytest.mark.parametrize("name", PREPARED)
def test_processors_and_criteria_act_as_in_plain_decoding(
    llama: ShadowedModel, ids: Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches scores that a later step has written over."""
    settings = {**PREPARED[name], "output_scores": True, "output_logits": True}
    want = plain(llama, ids, **settings)
    draft_from(monkeypatch, want.sequences, wrong=(13, 20))
    found = drafted(llama, ids, **settings, **STATIC)
    assert torch.equal(found.sequences, want.sequences)
    for kept in ("scores", "logits"):
        close(torch.cat(found[kept]), torch.cat(want[kept]))


@pytest.mark.slow
@torch.no_grad()
def test_sampled_texts_are_distributed_as_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a draft that is judged by another place's logits, or by those of another step."""
    # A second round begins behind four tokens; fewer would not show the logits of another step.
    drawn, vocabulary, more = 700, 3, 4
    # Two blocks, one of which is corrected: a text takes half the time, and there are hundreds.
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": 2}
    config = tiny_config("llama", **sizes, pad_token_id=None, bos_token_id=None)
    model = perturb(attached(tiny_model("llama", config=config), CONFIG))
    prompt = torch.tensor([[0, 2, 1]])
    texts = list(itertools.product(range(vocabulary), repeat=more))
    rows = torch.cat([prompt.expand(len(texts), -1), torch.tensor(texts)], dim=1)
    chances = model(rows).logits[:, 2:-1].div(0.9).log_softmax(-1)
    expected = chances.gather(2, rows[:, 3:, None]).sum((1, 2)).exp()
    counts, accepted = torch.zeros(len(texts)), 0
    torch.manual_seed(0)
    settings = {"max_new_tokens": more, "do_sample": True, "temperature": 0.9, "top_k": 0, **STATIC}
    for _ in range(drawn):
        out = drafted(model, prompt, 3, **settings)
        counts[texts.index(tuple(out.sequences[0, 3:].tolist()))] += 1
        accepted += sum(out.draft_report.accepted)
    assert p_value(counts, drawn * expected) > 0.01
    assert 0.2 * drawn < accepted < 1.9 * drawn


# What is compiled


@pytest.mark.slow  # torch.compile traces each of many shapes
@torch.no_grad()
def test_each_step_is_one_graph_whatever_is_drafted(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a step that breaks, or that is compiled anew for another prompt, draft or place."""
    model, (graphs, settings) = perturb(attached(tiny_model("llama"), CONFIG)), compiled()
    want = plain(model, ids)
    draft_from(monkeypatch, want.sequences, wrong=(12, 13, 18))
    found = drafted(model, ids, **settings)
    assert torch.equal(found.sequences, want.sequences)
    same_keys(found[versions.CACHE], want[versions.CACHE])
    assert len(graphs) == 1, "a round is one step"
    monkeypatch.undo()
    torch.compiler.reset()
    graphs.clear()
    drafted(model, ids, **settings)
    # Another length is another round, and no size is left open for both.
    drafted(model, ids, 3, **settings)
    assert len(graphs) == 2
    assert not [node for node in graphs[-1].graph.nodes if "Sym" in str(node.type)]
    for prompt in (ids, ids[:, :5]):
        found = drafted(model, prompt, max_new_tokens=12, **settings)
        assert torch.equal(found.sequences, plain(model, prompt, max_new_tokens=12).sequences)
    assert len(graphs) == 2
    drafted(model, ids, do_sample=True, **settings)
    assert len(graphs) == 5, "shadow, head and base, where drafts are drawn"


@torch.no_grad()
def test_auto_compiles_one_length(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pass of another length for every draft that is shorter."""
    model, (graphs, settings) = perturb(attached(tiny_model("llama"), CONFIG)), compiled()
    want = plain(model, ids, max_new_tokens=40).sequences
    draft_from(monkeypatch, want, wrong=(15, 18, 20, 21, 29, 40))
    found = drafted(model, ids, "auto", max_new_tokens=40, **settings)
    assert torch.equal(found.sequences, want)
    assert len(graphs) == 3
    assert len(found.draft_report.drafted) > 1, "nothing was drafted"


@pytest.mark.slow
@torch.no_grad()
def test_a_frame_in_context_breaks_the_graph_and_no_token(ids: Tensor) -> None:
    """Catches a family that cannot be compiled whole, and is then wrong."""
    model, (graphs, settings) = perturb(attached(tiny_model("bloom"))), compiled(fullgraph=False)
    assert torch.equal(drafted(model, ids, **settings).sequences, plain(model, ids).sequences)
    assert graphs


@torch.no_grad()
def test_what_transformers_does_not_compile_is_not(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches compilation where it was switched off."""
    graphs, settings = compiled()
    drafted(llama, ids, **settings, disable_compile=True)
    assert graphs == []


@pytest.mark.parametrize("at_once", [True, False])
def test_graphs_begin_anew_at_every_step(
    llama: ShadowedModel, ids: Tensor, at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches steps whose outputs a replay writes over while they are still read.

    The steps stand for CUDA graphs here: the next call of one overwrites what it put out.
    """
    outputs: dict[Any, Any] = {}

    def graph(step: Any, _: Any) -> Any:
        def run(*args: Any) -> Any:
            found = step(*args)
            for tensor, newer in zip(_each(outputs.get(step, ())), _each(found), strict=False):
                tensor.copy_(newer)
            return outputs.setdefault(step, found)

        return run

    settings = eager_rounds(monkeypatch) if at_once else STATIC
    monkeypatch.setattr(static_steps, "_compiled", graph)
    wanted = {"output_scores": True, "output_logits": True}
    want = plain(llama, ids, **wanted)
    draft_from(monkeypatch, want.sequences, wrong=(13, 18))
    found = drafted(llama, ids, **wanted, **settings)
    assert torch.equal(found.sequences, want.sequences)
    close(torch.cat(found.logits), torch.cat(want.logits))
    close(torch.cat(found.scores), torch.cat(want.scores))


def _each(outputs: Any) -> Sequence[Tensor]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@torch.no_grad()
def test_inductor_writes_the_same(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a step that is right as Python runs it, and wrong as it is compiled."""
    # Two blocks, which is all that a compiled step has to hand on from one to the next.
    config = tiny_config("llama", num_hidden_layers=2)
    model = perturb(attached(tiny_model("llama", config=config), CONFIG))
    want = plain(model, ids)
    draft_from(monkeypatch, want.sequences, wrong=(12, 13, 18))
    settings = CompileConfig(fullgraph=True)
    settings._compile_all_devices = True
    torch.compiler.reset()
    found = drafted(model, ids, compile_config=settings, **STATIC)
    assert torch.equal(found.sequences, want.sequences)
    same_keys(found[versions.CACHE], want[versions.CACHE])


# What is refused


def test_a_static_cache_that_is_too_short_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches tokens that are written behind the end of the cache."""
    needed = PROMPT + 20 - 1 + 3
    settings = {"past_key_values": llama.new_cache(max_length=needed - 1)}
    with pytest.raises(UserError, match=f"a static cache of {needed} tokens, .* room for {needed - 1}"):
        drafted(llama, ids, **settings)
    drafted(llama, ids, past_key_values=llama.new_cache(max_length=needed))


def test_a_static_cache_that_slides_is_refused(ids: Tensor) -> None:
    """Catches a crop that cannot bring back what left the window."""
    model = perturb(attached(tiny_model("gemma3_text")))
    with pytest.raises(UserError, match="static and slide"):
        drafted(model, ids, past_key_values=model.new_cache(max_length=40))


def test_flash_attention_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches keys of rejected tokens, which flash attention would read."""
    llama.base.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match="which flash attention does not read"):
        drafted(llama, ids, **STATIC)


@pytest.mark.parametrize("switch", [12, 40])
def test_rotary_factors_that_change_within_the_text_are_refused(ids: Tensor, switch: int) -> None:
    """Catches keys under the factors of the other side."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = switch
    config = tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=switch)
    model = perturb(attached(tiny_model("phi3", config=config)))
    if switch == 40:
        assert torch.equal(drafted(model, ids, **STATIC).sequences, plain(model, ids).sequences)
        return
    with pytest.raises(UserError, match="change at 12 tokens"):
        drafted(model, ids, **STATIC)
