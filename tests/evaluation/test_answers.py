"""Greedy answers: they depend on the model and the prompt alone, and end where they should."""

import pytest
import torch
from helpers.runs import one_thread  # noqa: F401 - a fixture
from helpers.tokenizers import build_tokenizer

from shadowpeft.data.encode import encode
from shadowpeft.data.rows import Row
from shadowpeft.data.tokenizers import stop_ids
from shadowpeft.errors import DataError
from shadowpeft.evaluation.answers import encode_prompts, greedy_answers

PROMPTS = ["what", "what is two plus", "hello think", "the city you are system what is"]


def test_prompts_that_leave_no_room_are_refused_by_row(tokenizer):
    rows = [Row({"prompt": text, "completion": "two"}, f"rows:{i}") for i, text in enumerate(PROMPTS)]
    prompts = encode_prompts(rows, tokenizer, 20, max_new_tokens=4)
    assert prompts == [tokenizer(text).input_ids for text in PROMPTS]
    longest = len(prompts[3])
    assert longest == max(map(len, prompts))
    assert encode_prompts(rows, tokenizer, longest + 4, max_new_tokens=4) == prompts
    message = (
        rf"rows:3: the prompt has {longest} tokens, which leaves no room for 5 new ones within {longest + 4}"
    )
    with pytest.raises(DataError, match=message):
        encode_prompts(rows, tokenizer, longest + 4, max_new_tokens=5)


def test_answers_do_not_depend_on_the_batch_and_modes_are_restored(shadowed, tokenizer):
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    shadowed.train()
    one = greedy_answers(shadowed, tokenizer, prompts, 5, batch_size=1, progress=False)
    assert one == greedy_answers(shadowed, tokenizer, prompts, 5, batch_size=4, progress=False)
    assert shadowed.training
    shadowed.eval()


def test_an_answer_ends_at_the_limit_of_prompt_and_answer(shadowed, tokenizer):
    """Catches one length for a whole batch: a long prompt's answer ends early, and a short one's does not."""
    prompts = [tokenizer(text).input_ids for text in ("what is two plus " * 20, "hello")]
    given = {"batch_size": 1, "progress": False}
    long, short = greedy_answers(shadowed, tokenizer, prompts, 100, batch_size=2, progress=False, limit=128)
    assert short == greedy_answers(shadowed, tokenizer, prompts[1:], 100, **given)[0]
    assert long == greedy_answers(shadowed, tokenizer, prompts[:1], 128 - len(prompts[0]), **given)[0]


def test_an_answer_ends_where_training_taught_it_to(shadowed, tokenizer):
    """Catches a tokenizer whose end token the model's own generation settings do not know: answers would
    never stop."""
    prompt = encode(Row({"prompt": "what is", "completion": " two"}, "row"), tokenizer, 64)["input_ids"][:-2]
    free = shadowed.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=None)[
        0, len(prompt) :
    ].tolist()
    later = next(number for number, token in enumerate(free) if number and token != free[0])
    ending = build_tokenizer()
    ending.eos_token = ending.convert_ids_to_tokens(free[later])
    assert free[later] not in (stop_ids(shadowed, tokenizer) or [])
    assert stop_ids(shadowed, ending) == sorted({shadowed.generation_config.eos_token_id, free[later]})
    (answer,) = greedy_answers(shadowed, ending, [prompt], 6, batch_size=1, progress=False)
    assert answer == ending.decode(free[: later + 1], skip_special_tokens=True)
    assert answer != ending.decode(free, skip_special_tokens=True)


def test_a_shadow_drafts_where_rows_are_answered_one_at_a_time(shadowed, tokenizer, monkeypatch):
    """Catches drafts that nobody allowed, for several rows, or beyond what the shadow can read."""
    prompts, calls = [tokenizer(text).input_ids for text in PROMPTS], []
    generate = type(shadowed).generate
    monkeypatch.setattr(
        type(shadowed),
        "generate",
        lambda model, *args, **kwargs: (
            calls.append(kwargs.get("draft")) or generate.__get__(model)(*args, **kwargs)
        ),
    )
    given = {"progress": False, "limit": 128}
    plain = greedy_answers(shadowed, tokenizer, prompts, 5, batch_size=1, **given)
    assert set(calls) == {None}
    assert greedy_answers(shadowed, tokenizer, prompts, 5, batch_size=2, may_draft=True, **given) == plain
    assert set(calls) == {None}
    assert greedy_answers(shadowed, tokenizer, prompts, 5, batch_size=1, may_draft=True, **given) == plain
    assert calls[-4:] == ["shadow"] * 4
    shadowed.adapter.shadow.backbone.config.max_position_embeddings = 100
    try:
        greedy_answers(shadowed, tokenizer, prompts, 5, batch_size=1, may_draft=True, **given)
    finally:
        shadowed.adapter.shadow.backbone.config.max_position_embeddings = 128
    assert calls[-4:] == [None] * 4
