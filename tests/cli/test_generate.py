"""`shadowpeft generate`: prompts from flags, from a file and from standard input."""

import io
import sys

import torch
from helpers.command_line import mistake, result
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowedModel
from shadowpeft.cli import main
from shadowpeft.export.source import Source
from shadowpeft.storage import hub_folder


def test_one_prompt_in_a_file_need_not_be_a_list(base_folder, tmp_path, capsys):
    (tmp_path / "ask.yaml").write_text("prompt: hello\nmax_new_tokens: 2\n", encoding="utf-8")
    answers = result(["generate", "--config", tmp_path / "ask.yaml", "--model", base_folder], capsys)[
        "answers"
    ]
    assert [answer["prompt"] for answer in answers] == ["hello"]


def test_an_adapter_is_taken_by_its_hub_id(base_folder, adapter_folder, monkeypatch, capsys):
    """Catches a verb that looks for a folder of that name alone."""
    words = ["generate", "--model", base_folder, "--prompt", "what", "--max-new-tokens", 3, "--adapter"]
    want = result([*words, adapter_folder], capsys)
    monkeypatch.setattr(hub_folder, "snapshot_download", lambda *_, **__: str(adapter_folder))
    assert result([*words, "user/name"], capsys) == want
    source = Source.inspect(str(base_folder), "user/name", None)
    assert source.folder == adapter_folder


def test_generate(base_folder, adapter_folder, monkeypatch, capsys):
    """Catches a chat template left out or put in, the wrong model, and a prompt lost on standard input."""
    words = ["generate", "--model", base_folder, "--adapter", adapter_folder, "--max-new-tokens", 6]
    answers = result([*words, "--prompt", "what", "--prompt", "hello"], capsys)["answers"]
    assert [answer["prompt"] for answer in answers] == ["what", "hello"]
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = ShadowedModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter_folder)
    for more, text, runs in (
        ([], "<|im_start|>user\nwhat<|im_end|>\n<|im_start|>assistant\n", model),
        (["--raw"], "what", model),
        (["--raw", "--detached"], "what", model.detached()),
    ):
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = runs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=2
        )
        expected = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert result([*words, *more, "--prompt", "what"], capsys)["answers"][0]["answer"] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("what\n"))
    assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.strip() == answers[0]["answer"].strip()
    sampled = ["--temperature", "2.0", "--top-k", "50", "--prompt", "what"]
    one, same, other = (
        result([*words, *sampled, "--seed", seed], capsys)["answers"][0]["answer"] for seed in (1, 1, 2)
    )
    assert one == same != other
    assert "leaves no room for 128 new ones" in mistake([*words[:-1], 128, "--prompt", "what"], capsys)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input is empty" in mistake(words, capsys)


def test_the_shadow_drafts_the_same_answer(base_folder, adapter_folder, monkeypatch, capsys):
    """Catches a flag that does not reach the model, another answer, and a stream that loses tokens."""
    words = ["generate", "--model", base_folder, "--adapter", adapter_folder, "--max-new-tokens", 12]
    words += ["--prompt", "what"]
    want = result(words, capsys)
    calls, generate = [], ShadowedModel.generate
    monkeypatch.setattr(
        ShadowedModel,
        "generate",
        lambda model, *args, **kwargs: calls.append(kwargs) or generate.__get__(model)(*args, **kwargs),
    )
    for more, tokens in (([], None), (["--draft-tokens", "auto"], "auto"), (["--draft-tokens", 3], 3)):
        assert result([*words, "--draft", "shadow", *more], capsys) == want
        assert (calls[-1]["draft"], calls[-1]["draft_tokens"]) == ("shadow", tokens)
    assert main([str(word) for word in [*words, "--draft", "shadow", "--speed"]]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == want["answers"][0]["answer"].strip()
    assert "a pass of the base)" in err
    (found,) = result([*words, "--draft", "shadow", "--draft-tokens", 3, "--speed"], capsys)["answers"]
    assert 1 <= found["tokens_per_round"] <= 3


def test_drafts_that_nothing_can_make_are_refused(base_folder, adapter_folder, capsys):
    """Catches a wish that is dropped, and a model that is loaded before it is refused."""
    words = ["generate", "--model", base_folder, "--prompt", "what", "--draft", "shadow"]
    assert "with --adapter" in mistake(words, capsys)
    words += ["--adapter", adapter_folder]
    assert "without --detached" in mistake([*words, "--detached"], capsys)
    assert "1 or more" in mistake([*words, "--draft-tokens", 0], capsys)
    assert "1 or more" in mistake([*words, "--draft-tokens", "many"], capsys)
    assert 'draft must be "shadow"' in mistake([*words[:-3], "ngram", *words[-2:]], capsys)
    assert 'give draft="shadow"' in mistake([*words[:5], "--draft-tokens", 2, *words[-2:]], capsys)
