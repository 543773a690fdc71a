"""Drafts from a vocabulary of few tokens: no text changes by it."""

import itertools
from typing import Any

import pytest
import torch
from helpers.drafts import GREEDY, drafted, p_value
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, _shadowed, close
from torch import Tensor
from transformers import CompileConfig

from shadowpeft import ShadowedModel, arch
from shadowpeft.arch import versions
from shadowpeft.errors import ConfigError, UserError
from shadowpeft.model import drafting
from shadowpeft.model.draft_rows import OUTSIDE, DraftRows, draft_logits

IDS = [0, 3, 7, 8, 30, 31, 64, 96]
# A soft cap, a factor and a divisor of the logits, a tied head, and a head with a bias.
FEW = [
    ("gemma2", "paper"),
    ("cohere", "normed"),
    ("granite", "normed"),
    ("qwen3", "normed"),
    ("gptj", "normed"),
]


@pytest.fixture(params=FEW, ids="-".join)
def few(request: pytest.FixtureRequest) -> ShadowedModel:
    """One of a few families; tests only read it."""
    return _shadowed(*request.param, "causal-lm")


@pytest.fixture
def llama() -> ShadowedModel:
    return perturb(attached(tiny_model("llama"), CONFIG))


@pytest.fixture
def ids() -> Tensor:
    return token_ids(1, 9)


@torch.no_grad()
def test_the_scores_of_the_vocabulary_are_those_of_the_whole_head(few: ShadowedModel) -> None:
    """Catches rows of other tokens, and a bias, factor or cap that is left out."""
    base = few.base
    s_11D = torch.randn(1, 1, base.config.hidden_size)
    whole, found = (draft_logits(base, rows, s_11D) for rows in (None, DraftRows(base, torch.tensor(IDS))))
    close(found[:, IDS], whole[:, IDS])
    others = [token for token in range(whole.shape[1]) if token not in IDS]
    assert (found[:, others] == OUTSIDE).all()
    assert not found.softmax(-1)[:, others].any()


@pytest.mark.parametrize("tokens", [3, "auto"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_greedy_texts_stay_the_same(llama: ShadowedModel, ids: Tensor, tokens: Any, cache: str) -> None:
    """Catches an answer of the base that is read from few rows."""
    settings = {**GREEDY, "repetition_penalty": 1.3}
    want = llama.generate(ids, **settings)
    llama.set_draft_vocabulary(IDS)
    found = drafted(llama, ids, tokens, repetition_penalty=1.3, cache_implementation=cache)
    assert torch.equal(found.sequences, want)
    assert found[versions.CACHE].draft_rows.ids_N.tolist() == IDS


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_only_the_vocabulary_is_drafted(
    llama: ShadowedModel, ids: Tensor, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a vocabulary that is set and not used, or used where it was declined."""
    seen: list[int] = []
    steps = drafting.StaticSteps if cache == "static" else drafting._Steps
    head = steps.head

    def noting(self: Any, s_11D: Tensor) -> Tensor:
        logits_1V = head(self, s_11D)
        seen.append(int((logits_1V > OUTSIDE).sum()))
        return logits_1V

    monkeypatch.setattr(steps, "head", noting)
    llama.set_draft_vocabulary(IDS)
    for wish, size in ((None, len(IDS)), (True, len(IDS)), (False, 97)):
        seen.clear()
        drafted(llama, ids, 3, draft_vocabulary=wish, cache_implementation=cache)
        assert set(seen) == {size}
    llama.set_draft_vocabulary(None)
    seen.clear()
    drafted(llama, ids, 3, cache_implementation=cache)
    assert set(seen) == {97}


def test_a_cache_that_is_continued_has_the_rows_of_its_call(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches rows of a vocabulary that has been replaced, and rows that are copied for every text."""
    cache = llama.new_cache()
    llama.set_draft_vocabulary(IDS)
    settings: Any = {"past_key_values": cache, "max_new_tokens": 3}
    text = drafted(llama, ids, **settings).sequences
    rows = cache.draft_rows
    text = drafted(llama, text, **settings).sequences
    assert cache.draft_rows is rows
    llama.set_draft_vocabulary(IDS[1:])
    text = drafted(llama, text, **settings).sequences
    assert cache.draft_rows.ids_N.tolist() == IDS[1:]
    drafted(llama, text, draft_vocabulary=False, **settings)
    assert cache.draft_rows is None


@torch.no_grad()
def test_a_vocabulary_is_compiled_once(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches a round that is compiled anew for the rows of each call."""
    graphs: list[Any] = []

    def keep(graph: Any, _: Any, **__: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    config = CompileConfig(backend=keep, fullgraph=True)
    config._compile_all_devices = True
    llama.set_draft_vocabulary(IDS)
    want = llama.generate(ids, **GREEDY)
    for _ in range(2):
        found = drafted(llama, ids, compile_config=config, cache_implementation="static")
        assert torch.equal(found.sequences, want)
        assert len(graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_sampled_texts_are_distributed_as_plain_ones() -> None:
    """Catches a probability of drafts outside of the vocabulary that the residual does not know."""
    drawn, vocabulary, more = 600, 4, 2
    # Two blocks, one of which is corrected: a text takes half the time, and there are hundreds.
    sizes = {"vocab_size": vocabulary, "num_hidden_layers": 2}
    config = tiny_config("llama", **sizes, pad_token_id=None, bos_token_id=None)
    model = perturb(attached(tiny_model("llama", config=config), CONFIG))
    model.set_draft_vocabulary([0, 2])
    prompt = torch.tensor([[0, 2, 1]])
    texts = list(itertools.product(range(vocabulary), repeat=more))
    rows = torch.cat([prompt.expand(len(texts), -1), torch.tensor(texts)], dim=1)
    expected = model(rows).logits[:, 2:-1].log_softmax(-1).gather(2, rows[:, 3:, None]).sum((1, 2)).exp()
    counts, accepted = torch.zeros(len(texts)), 0
    torch.manual_seed(0)
    for _ in range(drawn):
        out = drafted(model, prompt, 2, max_new_tokens=more + 1, do_sample=True, top_k=0)
        counts[texts.index(tuple(out.sequences[0, 3 : 3 + more].tolist()))] += 1
        accepted += sum(out.draft_report.accepted)
    assert p_value(counts, drawn * expected) > 0.01
    assert 0.1 * drawn < accepted < 0.95 * drawn


def test_a_vocabulary_that_is_all_forbidden_drafts_anything(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches a distribution without a token, from which nothing can be drawn."""
    llama.set_draft_vocabulary(IDS)
    text = drafted(llama, ids, do_sample=True, suppress_tokens=IDS).sequences
    assert not set(text[0, 9:].tolist()) & set(IDS)


def test_it_lives_no_longer_than_its_cache(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches rows that stay on a module."""
    before = dict(llama.named_buffers()), dict(llama.named_parameters())
    llama.set_draft_vocabulary(IDS)
    drafted(llama, ids)
    assert [list(part) for part in before] == [
        list(dict(llama.named_buffers())), list(dict(llama.named_parameters()))
    ]  # fmt: skip
    assert not [part for part in llama.modules() if isinstance(part, DraftRows)]


# What is refused


def test_a_vocabulary_that_is_missing_is_named(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches a wish that is dropped in silence."""
    with pytest.raises(UserError, match="'default' has no draft vocabulary; give it one"):
        drafted(llama, ids, draft_vocabulary=True)
    with pytest.raises(UserError, match=r"draft_vocabulary must be true, false or left out .*got \[1\]"):
        drafted(llama, ids, draft_vocabulary=[1])
    with pytest.raises(UserError, match='draft_vocabulary says how the shadow drafts; give draft="shadow"'):
        llama.generate(ids, draft_vocabulary=True)


def test_what_cannot_be_a_vocabulary_is_refused(llama: ShadowedModel) -> None:
    """Catches ids that fail at the first draft."""
    with pytest.raises(ConfigError, match="from 0 to 96"):
        llama.set_draft_vocabulary([97])
    assert llama.adapter.draft_vocabulary is None
    classifier = attached(tiny_model("llama", "sequence-classification"))
    with pytest.raises(ConfigError, match="a classifier drafts nothing"):
        classifier.set_draft_vocabulary([1])


def test_a_head_that_cannot_be_read_is_refused(llama: ShadowedModel, ids: Tensor) -> None:
    """Catches rows of packed numbers."""
    llama.set_draft_vocabulary(IDS)
    head = arch.head_of(llama.base)
    whole = head.weight
    head.weight = torch.nn.Parameter(whole.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="quantised or not in memory"):
        drafted(llama, ids)
    head.weight = whole
