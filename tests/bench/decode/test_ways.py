"""What a token takes is what is left of a call when the first tokens are taken off."""

import os
from types import SimpleNamespace

import pytest
import torch
from helpers.benches import CPU
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, CompileConfig

from shadowpeft.bench.decode import ways
from shadowpeft.bench.decode.methods import Loader, Writer
from shadowpeft.bench.decode.prompts import Prompt, random_prompt
from shadowpeft.bench.decode.specs import DecodeSpec
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.ways import Compiled, Generate
from shadowpeft.bench.decode.weights import SharedWeights
from shadowpeft.errors import UserError
from shadowpeft.generate import DraftReport


class Clocked:
    """A model that takes 50 ms for a prompt, 7 ms for each further token up to the sixth, then 2."""

    compiles = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(ways, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def generate(self, input_ids, attention_mask, **settings):
        self.calls.append(settings)
        if "cache_implementation" in settings and self.compiles:
            self._compiled_call = None
        tokens = settings["max_new_tokens"]
        self.now += (50 + 7 * min(tokens - 1, 5) + 2 * max(tokens - 6, 0)) / 1000
        out = torch.zeros(len(input_ids), input_ids.shape[1] + tokens, dtype=torch.long)
        if settings["return_dict_in_generate"]:
            return SimpleNamespace(sequences=out, draft_report=DraftReport(rounds=2, tokens=tokens - 1))
        return out


def prompts() -> list[Prompt]:
    return [Prompt(torch.ones(2, 8, dtype=torch.long), 30), Prompt(torch.ones(2, 4, dtype=torch.long), 26)]


def test_a_token_of_generate(monkeypatch):
    """Catches the prompt's time among the tokens', and settings that a user would not give."""
    model = Clocked(monkeypatch)
    way = Generate(Writer(model, model, None), prompts())
    assert [text.shape for text in way.first()] == [(2, 30), (2, 26)]
    turn = way.turn(2)
    assert turn.first_ms == pytest.approx([50] * 4)
    assert turn.call_ms == pytest.approx([50 + 35 + 48, 50 + 35 + 40] * 2)
    assert turn.token_ms == pytest.approx([83 / 29, 75 / 25] * 2)
    assert turn.reports == []
    assert all(call["do_sample"] is False for call in model.calls)
    assert all(call["min_new_tokens"] == call["max_new_tokens"] for call in model.calls)
    assert not any("cache_implementation" in call for call in model.calls)


def test_drafts_are_reported(monkeypatch):
    model = Clocked(monkeypatch)
    way = Generate(Writer(model, model, None, {"draft": "shadow", "draft_tokens": 4}), prompts()[:1])
    turn = way.turn(1)
    assert [(report.rounds, report.tokens) for report in turn.reports] == [(2, 29)]
    assert model.calls[-1]["draft_tokens"] == 4


def test_a_token_of_a_compiled_call(monkeypatch):
    """Catches the first steps of a call, which record its graphs, among the others."""
    model = Clocked(monkeypatch)
    monkeypatch.setattr(ways, "_wake_compiler", lambda device: None)
    graphs = iter([3, 4])
    monkeypatch.setattr(ways, "_graphs", lambda: next(graphs))
    way = Compiled(Writer(model, model, None), prompts()[:1])
    (text,) = way.first()
    assert text.shape == (2, 30)
    turn = way.turn(1)
    assert turn.token_ms == pytest.approx([2])
    assert turn.first_ms == pytest.approx([50])
    assert way.compile_seconds(turn) == pytest.approx(0)
    way._first_ms = 5133
    assert way.compile_seconds(turn) == pytest.approx(5)
    assert all(call["cache_implementation"] == "static" for call in model.calls[1:])


def test_what_was_not_compiled_is_not_timed(monkeypatch):
    """Catches a row of the way `compiled` that transformers ran as it is."""
    model = Clocked(monkeypatch)
    model.compiles = False
    monkeypatch.setattr(ways, "_wake_compiler", lambda device: None)
    with pytest.raises(UserError, match="transformers did not compile this model"):
        Compiled(Writer(model, model, None), prompts()[:1]).first()


def test_fewer_tokens_are_no_time(monkeypatch):
    """Catches a text that ended early, whose tokens would seem fast."""
    model = Clocked(monkeypatch)
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.zeros(2, 20, dtype=torch.long))
    with pytest.raises(UserError, match="30 tokens were asked for and 12 were written"):
        Generate(Writer(model, model, None), prompts()[:1]).first()


def test_compiling_on_a_cpu_as_on_a_gpu(monkeypatch):
    """Catches code that is compiled again by a later call, and seconds of one that found an earlier one's."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(ways, "_wake_compiler", lambda device: None)
    write, folders = Compiled._write, []
    compile_config = CompileConfig(backend="eager", mode=None)
    compile_config._compile_all_devices = True

    def anywhere(self, ids_BT, tokens, **options):
        folders.append(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
        return write(self, ids_BT, tokens, compile_config=compile_config, **options)

    monkeypatch.setattr(Compiled, "_write", anywhere)
    base = AutoModelForCausalLM.from_config(qwen3_config(num_hidden_layers=1, eos_token_id=None))
    loader = Loader(SharedWeights(base), Subject(shape="tiny"), None, 0)
    given = [random_prompt(97, batch=1, context=8, new_tokens=24, seed=1, device=CPU)]
    seconds, texts = [], []
    for _ in range(2):
        way = Compiled(loader.load(DecodeSpec("base")), given)
        texts += way.first()
        seconds.append(way.compile_seconds(way.turn(1)))
    texts += Generate(loader.load(DecodeSpec("base")), given).first()
    assert seconds[0] > 0
    assert seconds[1] is None
    assert torch.equal(texts[0], texts[1])
    assert torch.equal(texts[0], texts[2])
    assert folders[0]
    assert set(folders[1:5]) == {None}
    assert way.writer.stock._previous_max_cache_length > 0
    way.prompts = [random_prompt(97, batch=3, context=8, new_tokens=24, seed=1, device=CPU)]
    with pytest.raises(RuntimeError, match="fail_on_recompile"):
        way.turn(1)
