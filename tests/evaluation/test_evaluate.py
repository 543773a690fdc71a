"""Measures against the slow way of computing them, for attached, bare, detached and base models."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.rows import ANSWER, USER
from helpers.runs import one_thread  # noqa: F401 - a fixture
from helpers.tokenizers import THINKING, build_tokenizer, ids_of

from shadowpeft import arch
from shadowpeft.data.encode import encode
from shadowpeft.data.rows import Row
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.evaluation import evaluate as evaluation
from shadowpeft.evaluation.evaluate import evaluate

PROMPTS = ["what", "what is two plus", "hello think", "the city you are system what is"]


def rows_with(answers) -> list[Row]:
    return [
        Row({"prompt": text, "completion": answer}, f"rows:{i}")
        for i, (text, answer) in enumerate(zip(PROMPTS, answers, strict=True))
    ]


@torch.no_grad()
def slow_loss(model, tokenizer, rows) -> float:
    """One row at a time, one label at a time."""
    losses = []
    for row in rows:
        example = encode(row, tokenizer, 128)
        logits_TV = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
        losses += [
            F.cross_entropy(logits_TV[t - 1], torch.tensor(y)).item()
            for t, y in enumerate(example["labels"])
            if t and y != -100
        ]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kind", ["attached", "bare", "detached"])
def test_losses_equal_the_slow_way(kind, shadowed, tokenizer):
    """Catches averages over batches, padding that counts, labels off by one, and the wrong model measured."""
    rows = rows_with([" is", " four", " two plus two is four", " hello"])
    model = {"attached": shadowed, "bare": shadowed.base, "detached": shadowed.detached()}[kind]
    result = evaluate(model, tokenizer, rows, batch_size=3, exact_match=False, progress=False)
    assert result.loss == pytest.approx(slow_loss(model, tokenizer, rows), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(result.loss))
    assert (result.rows, result.answered_rows, result.exact_match) == (4, 4, None)
    if kind == "attached":
        assert result.shadow_loss == pytest.approx(slow_loss(shadowed.detached(), tokenizer, rows), rel=1e-4)
        with shadowed.disabled():
            bare = evaluate(shadowed, tokenizer, rows, exact_match=False, progress=False)
        assert bare.loss == pytest.approx(slow_loss(shadowed.base, tokenizer, rows), rel=1e-5)
        assert bare.shadow_loss is None
        assert bare.loss != pytest.approx(result.loss, rel=1e-2)
    else:
        assert result.shadow_loss is None


@pytest.mark.parametrize("distil", [0.4, 1.0])
def test_what_the_shadow_learns_from_changes_no_measure(distil, shadowed, tokenizer, monkeypatch):
    """Catches a loss of the model's own head in which some of the shadow's is left."""
    rows = rows_with([" is", " four", " two plus two is four", " hello"])
    wanted = evaluate(shadowed, tokenizer, rows, exact_match=False, progress=False)
    adapter = shadowed.adapters["default"]
    monkeypatch.setattr(adapter, "settings", replace(adapter.settings, shadow_distil=distil))
    found = evaluate(shadowed, tokenizer, rows, exact_match=False, progress=False)
    assert (found.loss, found.shadow_loss) == (pytest.approx(wanted.loss, rel=1e-6), wanted.shadow_loss)


def test_the_losses_of_a_shadowed_model_hold_no_logits(shadowed, tokenizer, monkeypatch):
    """Catches an evaluation that needs more memory than the training: logits of 8 rows of 2,048 tokens and
    262,144 classes are 17 GB."""

    def refuse(*_):
        raise AssertionError("logits were computed")

    monkeypatch.setattr(arch, "logits", refuse)
    assert (
        evaluate(
            shadowed, tokenizer, rows_with([" is", " four", " a", " b"]), exact_match=False, progress=False
        ).loss
        > 0
    )


def test_exact_match_counts_what_is_right(shadowed, tokenizer):
    """Catches answers in the order of length instead of the rows', white space that counts, and padding that
    changes answers."""
    width = 4
    said = []
    for text in PROMPTS:  # one at a time, so no padding
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = shadowed.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=width, do_sample=False, pad_token_id=2
        )
        said.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    assert len(set(said)) == len(PROMPTS)
    result = evaluate(
        shadowed,
        tokenizer,
        rows_with([f" {text}\n" for text in said]),
        batch_size=3,
        max_new_tokens=width,
        progress=False,
    )
    assert result.exact_match == 1.0
    assert (
        evaluate(
            shadowed, tokenizer, rows_with([*said[:3], "no"]), max_new_tokens=width, progress=False
        ).exact_match
        == 0.75
    )
    assert (
        evaluate(shadowed.base, tokenizer, rows_with(said), max_new_tokens=width, progress=False).exact_match
        < 0.75
    )


def test_rows_without_answers_have_losses_only(shadowed, tokenizer):
    result = evaluate(shadowed, tokenizer, [Row({"text": "hello what is"}, "rows:1")], progress=False)
    assert result.exact_match is None
    assert (result.answered_rows, result.rows) == (0, 1)
    assert result.tokens > 0


def test_one_long_answer_does_not_fail_the_run(shadowed, tokenizer):
    """Catches the longest answer's length asked of every prompt, and an answer that goes beyond the model."""
    rows = [
        Row({"prompt": "what is two plus " * 20, "completion": " four"}, "rows:0"),
        Row({"prompt": "hello", "completion": " four" * 100}, "rows:1"),
    ]
    assert evaluate(shadowed, tokenizer, rows, batch_size=2, progress=False).exact_match == 0


def test_prompts_are_checked_before_the_losses(shadowed, tokenizer, monkeypatch):
    monkeypatch.setattr(
        evaluation,
        "measure_losses",
        lambda *_, **__: pytest.fail("the losses were computed before the check"),
    )
    with pytest.raises(DataError, match=r"leaves no room"):
        evaluate(shadowed, tokenizer, rows_with([" is"] * 4), max_new_tokens=128, progress=False)


def test_what_cannot_be_measured(shadowed, tokenizer):
    rows = rows_with([" is", " four", " two", " hello"])
    with pytest.raises(
        DataError, match="rows:0: the prompt has 1 tokens, which leaves no room for 128 new ones within 128"
    ):
        evaluate(shadowed, tokenizer, rows, max_new_tokens=128, progress=False)
    with pytest.raises(ConfigError, match=r"at most the model's 128"):
        evaluate(shadowed, tokenizer, rows, max_length=129, progress=False)
    with pytest.raises(DataError, match=r"no row has a token to predict"):
        evaluate(shadowed, tokenizer, [Row({"text": "<|im_end|>"}, "rows:1")], progress=False)


@pytest.mark.parametrize("limit", [None, 4])
def test_an_empty_block_of_thoughts_is_neither_scored_nor_counted(shadowed, monkeypatch, limit):
    """Catches a model trained to perfection that scores 0, since the template opens answers with a block."""
    tokenizer, room = build_tokenizer(THINKING), []
    opening = "<think>\n\n</think>\n\n"
    given = [opening + "two is four", "two is four", opening + "two is", opening]

    def answered(*_, max_new_tokens, **__):
        room.append(max_new_tokens)
        return given

    monkeypatch.setattr(evaluation, "greedy_answers", answered)
    rows = [Row({"messages": [USER, ANSWER]}, "here")] * 4
    found = evaluate(shadowed, tokenizer, rows, max_new_tokens=limit, progress=False)
    assert found.exact_match == 0.5
    counted = ids_of(tokenizer, opening)
    # With its opening and end the reference has one token more.
    wanted = (
        len(ids_of(tokenizer, opening + "two is four<|im_end|>")) + 1
        if limit is None
        else limit + len(counted)
    )
    assert room == [wanted]


def test_what_was_trained_beside_the_content_is_the_reference(shadowed, monkeypatch):
    """Catches calls of tools and thoughts, which are learned, compared with the bare content."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% for call in m.tool_calls or [] %}call {{ call.function.name }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    rows = [Row({"messages": [USER, call]}, "here")] * 2
    monkeypatch.setattr(evaluation, "greedy_answers", lambda *_, **__: ["call add", ""])
    assert evaluate(shadowed, build_tokenizer(template), rows, progress=False).exact_match == 0.5
