"""Facts of a base: the same base at another precision is accepted, every other base is refused by name."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.families import LABELS, tiny_config, tiny_model

from shadowpeft.errors import CheckpointError
from shadowpeft.storage.base_facts import BaseFacts

PATH = Path("folder/file.json")


@pytest.fixture(scope="module")
def base():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def facts(base) -> BaseFacts:
    return BaseFacts.of(base)


def changed(base, change):
    other = copy.deepcopy(base)
    with torch.no_grad():
        change(other)
    return BaseFacts.of(other)


def test_the_facts_survive_json(facts):
    """Catches a value that JSON rounds or turns into another type."""
    assert BaseFacts.read(json.loads(json.dumps(dataclasses.asdict(facts))), PATH) == facts
    assert [len(part) for part in facts.sample.values()] == [16, 16, 16]


def test_the_base_itself_is_accepted_at_any_precision(base, facts):
    """Catches a comparison that is stricter than rounding to bfloat16."""
    facts.refuse_other(facts, Path("folder"))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        facts.refuse_other(changed(base, lambda other, dtype=dtype: other.to(dtype)), Path("folder"))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("embeddings", lambda base: base.model.embed_tokens.weight.mul_(1.05)),
        ("first block", lambda base: base.model.layers[0].self_attn.q_proj.weight.mul_(1.05)),
        ("last block", lambda base: base.model.layers[-1].self_attn.q_proj.weight.mul_(1.05)),
    ],
)
def test_other_weights_are_refused_by_part(base, facts, part, change):
    """Catches a comparison of embeddings alone, which a merged LoRA leaves as they were."""
    with pytest.raises(CheckpointError, match=rf"the shadow in folder was .*other weights \(of its {part}\)"):
        facts.refuse_other(changed(base, change), Path("folder"), "shadow")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("task", "sequence-classification"),
        ("hidden_size", 33),
        ("num_hidden_layers", 5),
        ("vocab_size", 98),
        ("num_labels", 3),
    ],
)
def test_another_size_is_refused_by_name(facts, field, value):
    other = dataclasses.replace(facts, **{field: value})
    with pytest.raises(CheckpointError, match=f"{field} {getattr(facts, field)}, this base has {value}"):
        facts.refuse_other(other, Path("folder"))


def test_the_name_may_change(facts):
    """A base is moved, or loaded by its hub id and not from a folder."""
    facts.refuse_other(dataclasses.replace(facts, name="elsewhere"), Path("folder"))


@pytest.mark.parametrize("how", ["packed", "float8", "meta"])
def test_a_part_that_cannot_be_read_has_no_sample_and_is_not_compared(base, facts, how):
    """Catches packed integers, or values whose scale stands beside them, compared with plain weights."""

    def quantise(other) -> None:
        module = other.model.layers[0]
        for name, parameter in list(module.named_parameters()):
            owner, _, last = name.rpartition(".")
            if how == "meta":
                value = parameter.to("meta")
            else:
                value = parameter.to({"packed": torch.int8, "float8": torch.float8_e4m3fn}[how])
            wrapped = torch.nn.Parameter(value, requires_grad=False)
            setattr(module.get_submodule(owner), last, wrapped)

    quantised = changed(base, quantise)
    assert quantised.sample["first block"] == []
    assert len(quantised.sample["last block"]) == 16
    facts.refuse_other(quantised, Path("folder"))
    quantised.refuse_other(facts, Path("folder"))


def test_a_classifier_has_its_number_of_labels():
    classifier = tiny_model("llama", "sequence-classification", config=tiny_config("llama"))
    facts = BaseFacts.of(classifier)
    assert (facts.task, facts.num_labels) == ("sequence-classification", LABELS)


WRONG = {
    "name": 3,
    "model_type": None,
    "task": [],
    "hidden_size": "32",
    "num_hidden_layers": 4.0,
    "vocab_size": None,
    "sample": None,
}


@pytest.mark.parametrize("field", WRONG)
def test_a_fact_of_the_wrong_type_is_named(facts, field):
    values = {**dataclasses.asdict(facts), field: WRONG[field]}
    with pytest.raises(CheckpointError, match=f"a shadow folder's configuration: base.{field} has a value"):
        BaseFacts.read(values, PATH, "a shadow folder's")


@pytest.mark.parametrize("part", [["a"], [1], [math.nan], [math.inf], {}, None])
def test_a_sample_holds_finite_numbers(facts, part):
    values = {**dataclasses.asdict(facts), "sample": {"embeddings": part}}
    with pytest.raises(CheckpointError, match=r"base.sample has a value of the wrong kind"):
        BaseFacts.read(values, PATH)


@pytest.mark.parametrize("values", [None, [], {}, "base"])
def test_facts_that_are_missing_are_listed(values):
    with pytest.raises(
        CheckpointError, match=r"file.json is not an adapter's configuration: 'base' must hold name, "
    ):
        BaseFacts.read(values, PATH)
