"""Answers one by one: which prompts get a chat template, and what reaches the model's `generate`."""

import json
from typing import Any

import pytest
import torch
from helpers.tokenizers import CHATML, THINKING, ids_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation import GenerateDecoderOnlyOutput

from shadowpeft.cli._answers import Sampling, answer
from shadowpeft.errors import DataError

GREEDY = Sampling(max_new_tokens=3, temperature=0.0, top_p=0.9, top_k=7, seed=0, drafts={})


@pytest.fixture(scope="module")
def loaded(base_folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    return model, AutoTokenizer.from_pretrained(base_folder)


@pytest.fixture
def calls(loaded, monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """The prompts that `generate` got, as text, and its settings."""
    model, tokenizer = loaded
    seen = []

    def generate(ids, **settings):
        seen.append((tokenizer.decode(ids[0]), settings))
        return GenerateDecoderOnlyOutput(sequences=torch.cat([ids, ids[:, :2]], 1))

    monkeypatch.setattr(model, "generate", generate)
    return seen


def test_sampling_settings_are_given_only_where_tokens_are_sampled(loaded, calls, capsys):
    """Catches transformers' warning of settings without effect, and a temperature that does not arrive."""
    answer(*loaded, ["what"], raw=True, sampling=GREEDY, as_json=True)
    answer(*loaded, ["what"], raw=True, sampling=GREEDY._replace(temperature=0.5), as_json=True)
    (_, greedy), (_, sampled) = calls
    assert greedy["do_sample"] is False
    assert not {"temperature", "top_p", "top_k"} & greedy.keys()
    chosen = {name: sampled[name] for name in ("do_sample", "temperature", "top_p", "top_k")}
    assert chosen == {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 7}


def test_only_new_tokens_are_the_answer(loaded, calls, capsys):
    answer(*loaded, ["what is", "hello"], raw=True, sampling=GREEDY, as_json=True)
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [each["prompt"] for each in answers] == ["what is", "hello"]
    assert [each["tokens"] for each in answers] == [2, 2]
    assert [prompt for prompt, _ in calls] == ["what is", "hello"]


def test_a_prompt_without_room_is_named_by_its_number(loaded, calls, capsys):
    """Catches a first answer printed before the second prompt is refused."""
    with pytest.raises(DataError, match="prompt 2: the prompt has"):
        answer(*loaded, ["what", "hello " * 200], raw=True, sampling=GREEDY, as_json=False)
    assert (calls, capsys.readouterr().out) == ([], "")


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("as_json", [True, False])
def test_what_the_template_opens_an_answer_with_is_not_shown_or_counted(
    loaded, monkeypatch, capsys, opens, as_json
):
    """Catches an empty block of thoughts in an answer, which also takes the tokens that were asked for."""
    model, tokenizer = loaded
    monkeypatch.setattr(tokenizer, "chat_template", THINKING)
    opening, settings = ids_of(tokenizer, "<think>\n\n</think>\n\n"), []
    new = opening * opens + ids_of(tokenizer, "<think four")

    def generate(ids, streamer=None, **given):
        settings.append(given)
        if streamer is not None:
            streamer.put(ids[0])
            for token in new:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return GenerateDecoderOnlyOutput(sequences=torch.cat([ids, torch.tensor([new])], 1))

    monkeypatch.setattr(model, "generate", generate)
    answer(*loaded, ["what"], raw=False, sampling=GREEDY, as_json=as_json)
    assert settings[0]["max_new_tokens"] == 3 + len(opening)
    said = capsys.readouterr().out
    if not as_json:
        assert said == "<think four\n"
        return
    (found,) = json.loads(said)["answers"]
    assert (found["answer"], found["tokens"]) == ("<think four", len(ids_of(tokenizer, "<think four")))


def test_a_prompt_that_is_rendered_already_is_told_of(loaded, calls, monkeypatch, capsys):
    """Catches a template put around a rendered chat without a word."""
    monkeypatch.setattr(loaded[1], "chat_template", CHATML)
    with pytest.warns(UserWarning, match=r"holds the special token .*; give --raw"):
        answer(*loaded, ["<|im_start|>user\nwhat<|im_end|>"], raw=False, sampling=GREEDY, as_json=True)


def test_speed_is_told_when_asked(loaded, calls, capsys):
    """Catches a time of another answer, and figures where nobody asked or in the way of the answer."""
    answer(*loaded, ["what is", "hello"], raw=True, sampling=GREEDY, as_json=True, speed=True)
    for each in json.loads(capsys.readouterr().out)["answers"]:
        assert each["tokens"] == 2
        assert each["seconds"] >= 0
        assert each["tokens_per_second"] > 2
        assert "tokens_per_round" not in each
    answer(*loaded, ["what is", "hello"], raw=True, sampling=GREEDY, as_json=False, speed=True)
    out, err = capsys.readouterr()
    assert "tokens/s" not in out
    assert [line.partition(" (2 tokens in ")[1] != "" for line in err.splitlines()] == [True, True]
    answer(*loaded, ["what"], raw=True, sampling=GREEDY, as_json=False)
    assert capsys.readouterr().err == ""


def test_an_answer_is_printed_as_it_comes(loaded, monkeypatch, capsys):
    """Catches a stream that is printed at its end: every word must be out before the next token is made."""
    model, tokenizer = loaded
    new, seen = ids_of(tokenizer, "what is two plus four"), []

    def generate(ids, streamer, **_):
        streamer.put(ids[0])
        for token in new:
            streamer.put(torch.tensor([token]))
            seen.append(capsys.readouterr().out)
        streamer.end()
        return GenerateDecoderOnlyOutput(sequences=torch.cat([ids, torch.tensor([new])], 1))

    monkeypatch.setattr(model, "generate", generate)
    answer(*loaded, ["hello"], raw=True, sampling=GREEDY, as_json=False)
    assert "".join(seen) + capsys.readouterr().out == "what is two plus four\n"
    assert sum(map(bool, seen)) > 2
