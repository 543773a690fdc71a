"""Answers one by one: which prompts get a chat template, and what reaches the model's `generate`."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.cli._answers import Sampling, answer
from shadowpeft.errors import DataError

GREEDY = Sampling(max_new_tokens=3, temperature=0.0, top_p=0.9, top_k=7, seed=0)


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
        return torch.cat([ids, ids[:, :2]], 1)

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
