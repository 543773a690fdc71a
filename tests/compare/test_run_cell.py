"""Whole cells: every method trained and measured on every kind of task."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from helpers.tiny_tasks import TASKS, WORDS, both, cell_of, class_items, question_items
from transformers import AutoTokenizer

from shadowpeft.compare import (
    matching,
    measure,
    methods,
    run_cell,
    tasks,
)
from shadowpeft.compare.matching import MATCHED
from shadowpeft.compare.search_space import METHODS
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks.base import Item, Task
from shadowpeft.evaluation.calibration import negative_log_likelihood

DETACHES = ("shadow", "shadow-paper", "shadow-explicit", "shadow-frozen", "peft-shadow")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_and_measured_on_every_kind_of_task(
    method: str, task: str, study: Study
) -> None:
    """Catches a method that cannot train, detach or be measured on a kind of task, and a row that JSON cannot
    hold."""
    rows = run_cell.run_cell(cell_of(study, method, task), study)
    assert [row["mode"] for row in rows] == (["attached", "detached"] if method in DETACHES else ["attached"])
    for row in rows:
        json.dumps(row, allow_nan=False)
        assert 0 <= row["value"] <= 1
        assert len(row["correct"]) == row["items"]
        assert row["value"] == pytest.approx(row["correct"].count("1") / row["items"])
        assert row["ms_per_answer"] > 0
        assert (row["calibration"] is None) == (task == "questions")
        trains = method != "base" or task == "classes"
        assert row["steps"] == (2 if trains else 0)
        assert (row["train_loss"] is not None) == trains
    assert math.isfinite(rows[0]["forgetting"])
    if method in MATCHED:
        assert abs(rows[0]["trainable"] / matching.lora_parameters(study.model) / 16 - 1) <= 0.05
    assert (rows[0]["trainable_with_heads"] > rows[0]["trainable"]) == (task == "classes")


def test_search_of_a_generation_task_reads_the_loss_of_validation_alone(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a search that reads the test split, and a loss that counts the prompt."""
    read = []
    watched = dataclasses.replace(
        TASKS["questions"], load=lambda split, source: read.append(split) or question_items(split, source)
    )
    monkeypatch.setitem(tasks.TASKS, "questions", watched)
    (row,) = run_cell.run_cell(cell_of(study, "base", "questions", "search"), study)
    assert set(read) == {"validation"}
    assert row["metric"] == "loss"
    model, tokenizer = both(study.model)
    expected = []
    for item in question_items("validation", None):
        prompt = tokenizer(item.prompt)["input_ids"]
        answer = [*tokenizer(item.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected += [-logs[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer)]
    assert row["value"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_cost_reads_no_test_row_and_times_steps(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stage that reads the test split once more, and warm-up steps that are counted."""
    read = []
    watched = dataclasses.replace(
        TASKS["classes"], load=lambda split, source: read.append(split) or class_items(split, source)
    )
    monkeypatch.setitem(tasks.TASKS, "classes", watched)
    monkeypatch.setattr(run_cell, "TIMED_STEPS", 3)
    rows = run_cell.run_cell(cell_of(study, "shadow", stage="cost"), study)
    assert "test" not in read
    assert [row["mode"] for row in rows] == ["attached", "detached"]
    assert all(row["value"] > 0 and row["ms_per_answer"] > 0 and row["steps"] == 8 for row in rows)


def test_only_measuring_reads_the_test_split(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches test items that are answered a second time to take the time of answers."""
    timed: list[Any] = []
    monkeypatch.setattr(measure, "ms_per_answer", lambda ask, items, device: timed.extend(items) or 1.0)
    watched = dataclasses.replace(
        TASKS["classes"], load=lambda split, source: [Item(f"{split} cat", i % 3) for i in range(6)]
    )
    monkeypatch.setitem(tasks.TASKS, "classes", watched)
    run_cell.run_cell(cell_of(study, "shadow"), study)
    assert {item.prompt for item in timed} == {"validation cat"}


def test_detached_row_is_what_the_detached_model_answers(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches rows called detached that were measured attached."""
    kept: list[methods.Built] = []

    def keeping(*args: Any, **options: Any) -> methods.Built:
        kept.append(methods.build(*args, **options))
        return kept[-1]

    monkeypatch.setattr(run_cell, "build", keeping)
    fast = cell_of(study, "shadow", learning_rate=0.3)
    rows = run_cell.run_cell(fast, study)
    tokenizer, items = AutoTokenizer.from_pretrained(study.model), class_items("test", None)
    attached, detached = (
        measure.answer(model, tokenizer, TASKS["classes"], items, 3, 16)
        for model in (kept[0].model, kept[0].model.detached())
    )
    assert attached.probabilities != detached.probabilities
    for row, given in zip(rows, (attached, detached), strict=True):
        sure = given.probabilities
        assert sure is not None
        assert row["metrics"]["nll"] == pytest.approx(
            negative_log_likelihood(sure, [item.target for item in items]), rel=1e-4
        )


def test_cells_do_not_influence_each_other(study: Study) -> None:
    """Catches a base, a cache or a random state that a cell leaves changed to the next."""
    cell = cell_of(study, "lora", "choices")
    first = run_cell.run_cell(cell, study)[0]
    run_cell.run_cell(cell_of(study, "full", "choices", learning_rate=0.5), study)
    again = run_cell.run_cell(cell, study)[0]
    assert [first[name] for name in ("train_loss", "metrics", "forgetting")] == [
        again[name] for name in ("train_loss", "metrics", "forgetting")
    ]


@pytest.fixture
def partnered(study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Settings of three test rows a task, of which `classes` has nine, and eight its partner `others`."""

    def load(name: str, count: int) -> Any:
        return lambda split, source: [Item(f"{name} {split} {WORDS[i]}", i % 3) for i in range(count)]

    classes = dataclasses.replace(TASKS["classes"], load=load("own", 9), partners=("others",))
    monkeypatch.setitem(tasks.TASKS, "classes", classes)
    monkeypatch.setitem(
        tasks.TASKS, "others", dataclasses.replace(classes, name="others", load=load("other", 8), partners=())
    )
    return dataclasses.replace(study, ood=True, test_rows=3, validation_rows=9)


def test_only_test_rows_are_skipped_and_those_of_partners_too(
    partnered: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a setting that never reaches the measuring, that takes rows off the validation split, or leaves
    a partner's rows in."""
    asked: dict[str, list[str]] = {}
    answer = measure.answer

    def noting(model: Any, tokenizer: Any, task: Task, items: Any, *args: Any, **options: Any) -> Any:
        if len(items) > 1:  # not those whose time is taken one by one
            asked.setdefault(task.name, []).extend(item.prompt for item in items)
        return answer(model, tokenizer, task, items, *args, **options)

    monkeypatch.setattr(measure, "answer", noting)
    seen, digests = [], []
    for skip in (0, 3, [3, 3]):
        asked.clear()
        rows = run_cell.run_cell(cell_of(partnered, "base"), dataclasses.replace(partnered, test_skip=skip))
        seen.append({name: set(prompts) for name, prompts in asked.items()})
        digests.append({row["task"]: row["items_digest"] for row in rows})
    counts = [{name: len(prompts) for name, prompts in study.items()} for study in seen]
    assert counts == [{"classes": 3, "others": 3}, {"classes": 3, "others": 3}, {"classes": 3, "others": 2}]
    for name, count in (("classes", 9), ("others", 8)):
        assert len(set.union(*(study[name] for study in seen))) == count, "no row twice"
        assert len({study[name] for study in digests}) == 3, "the digest tells which rows were read"
    (row,) = run_cell.run_cell(
        cell_of(partnered, "base", stage="search"), dataclasses.replace(partnered, test_skip=[3, 3])
    )
    assert row["items"] == 9


def test_each_task_skips_its_own_rows(partnered: Study) -> None:
    """Catches a partner that is tested without the rows that the task trained on skips, or the other way
    round."""

    def read(test_skip: Any) -> dict[str, str]:
        rows = run_cell.run_cell(
            cell_of(partnered, "base"), dataclasses.replace(partnered, test_skip=test_skip)
        )
        return {row["task"]: row["items_digest"] for row in rows}

    none, once, twice = map(read, (0, 3, [3, 3]))
    assert read({"classes": 3}) == {"classes": once["classes"], "others": none["others"]}
    assert read({"others": [3, 3]}) == {"classes": none["classes"], "others": twice["others"]}
    assert read({"classes": [3, 3], "others": 3}) == {"classes": twice["classes"], "others": once["others"]}
