"""Answers of a model, and the hidden state that a head reads."""

import dataclasses

import pytest
import torch
from helpers.families import perturb, tiny_model
from helpers.tiny_tasks import TASKS, both, cell_of, class_items, words_of
from transformers import AutoTokenizer

from shadowpeft import arch, attach
from shadowpeft.compare import (
    measure,
    methods,
    run_cell,
    tasks,
)
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Item
from shadowpeft.errors import UserError


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_divergence(wrong: float) -> None:
    """Catches an answer that is read off logits that overflowed."""
    with pytest.raises(UserError, match="training diverged"):
        measure._likeliest([torch.tensor([0.1, wrong, 0.3])])


@pytest.mark.parametrize("choices", [(" A", " B", " C"), (" one two", " star", " blue cat dog")])
@torch.inference_mode()
def test_likelihood_of_choices_equals_one_at_a_time(choices: tuple[str, ...], tiny: str) -> None:
    """Catches an offset by one, padding that is attended to, and a short cut that differs from the long
    way."""
    model, tokenizer = both(tiny)
    items = [Item(f"{words_of(i)} Answer:", 0, choices=choices[: 3 - i % 2]) for i in range(5)]
    given = measure.answer(model, tokenizer, TASKS["choices"], items, 2, 64)
    for item, found in zip(items, given.probabilities or [], strict=True):
        scores = []
        for choice in item.choices:
            prompt, ids = (
                tokenizer(item.prompt)["input_ids"],
                tokenizer(choice, add_special_tokens=False)["input_ids"],
            )
            logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            scores.append(sum(logs[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids)))
        assert found == pytest.approx(torch.tensor(scores).softmax(-1).tolist(), abs=1e-5)


@torch.inference_mode()
def test_classes_equal_one_at_a_time(study: Study) -> None:
    """Catches answers that come back in another order, and padding that moves the pooled token."""
    built = methods.build(cell_of(study, "lora"), study, TASKS["classes"], 0, torch.device("cpu"))
    model, tokenizer = built.model.eval(), AutoTokenizer.from_pretrained(study.model)
    items = class_items("test", None)
    given = measure.answer(model, tokenizer, TASKS["classes"], items, 3, 16)
    for item, found in zip(items, given.probabilities or [], strict=True):
        assert found == pytest.approx(
            model(**tokenizer(item.prompt, return_tensors="pt")).logits[0].softmax(-1).tolist(), abs=1e-5
        )


def test_answers_end_at_the_first_stop_text(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an answer scored with what the model rambled afterwards, and one that a line break before it
    empties."""
    model, tokenizer = both(tiny)
    told = ["4\nQuestion: five\n\n", "\n\n 4 \nQuestion", "4", "\n"]
    monkeypatch.setattr(measure, "greedy_answers", lambda *args, **kwargs: told)
    task = dataclasses.replace(TASKS["questions"], stop=("Question", "\n"))
    assert measure.answer(model, tokenizer, task, [Item("What?", "4")] * 4, 4, 64).answers == [
        "4",
        "4",
        "4",
        "",
    ]


def test_prompts_beyond_the_context_are_counted(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches prompts that lose their beginning unnoticed, and an answer without room behind its prompt."""
    long, short = (
        Item("cat " * 200 + "dog", 0, " A", choices=(" A", " star star")),
        Item("cat", 0, " A", choices=(" A", " star star")),
    )
    model, tokenizer = both(study.model)
    end = tokenizer(long.prompt)["input_ids"][-(128 - len(tokenizer(" star star")["input_ids"]) + 1) :]
    given = measure.answer(model, tokenizer, TASKS["choices"], [long, short], 2, 64)
    alone = measure.answer(model, tokenizer, TASKS["choices"], [long], 2, 64, encoded=[end])
    assert (given.cut, alone.cut) == (1, 0)
    assert (given.probabilities or [])[0] == pytest.approx((alone.probabilities or [])[0], abs=1e-5)
    monkeypatch.setitem(
        tasks.TASKS,
        "questions",
        dataclasses.replace(TASKS["questions"], load=lambda split, source: [long, short, long]),
    )
    with pytest.warns(
        UserWarning,
        match=r"questions: 2 of 3 prompts of the test split leave no room for an answer in the context of",
    ):
        (row,) = run_cell.run_cell(cell_of(study, "base", "questions"), study)
    assert (row["prompts_cut"], row["items"]) == (2, 3)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gpt2", "opt", "bloom"])
@torch.inference_mode()
def test_last_hidden_state_is_what_the_head_reads(model_type: str) -> None:
    """Catches a state from before the final norm, which some families' outputs hold."""
    ids = torch.arange(3, 21).view(2, 9)
    base = tiny_model(model_type)
    shadowed = perturb(attach(tiny_model(model_type)))
    for model, stock in ((base, base), (shadowed, shadowed.base)):
        hidden = measure.last_hidden(model, ids, torch.ones_like(ids), causal=True)
        assert torch.equal(arch.logits(stock, hidden), model(ids, use_cache=False).logits)
