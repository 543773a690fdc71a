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
    sizes = {part: len(values) for part, values in facts.sample.items()}
    assert [sizes.pop(part) for part in ("embeddings", "first block", "last block")] == [16, 16, 16]
    assert set(sizes.values()) == {4}


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
        (
            "block 1: self_attn.v_proj.weight",
            lambda base: base.model.layers[1].self_attn.v_proj.weight.mul_(1.01),
        ),
        ("block 2: mlp.down_proj.weight", lambda base: base.model.layers[2].mlp.down_proj.weight.mul_(1.01)),
        (
            "block 2: input_layernorm.weight",
            lambda base: base.model.layers[2].input_layernorm.weight.mul_(1.01),
        ),
    ],
)
def test_other_weights_are_refused_by_part(base, facts, part, change):
    """Catches a comparison of embeddings alone, which a merged LoRA leaves as they were."""
    with pytest.raises(CheckpointError, match=rf"the shadow in folder was .*other weights \(of its {part}\)"):
        facts.refuse_other(changed(base, change), Path("folder"), "shadow")


def step(base, learning_rate: float) -> None:
    """Move every weight by the learning rate, as a step of Adam does."""
    torch.manual_seed(0)
    for weight in base.parameters():
        weight.add_(learning_rate * torch.randn_like(weight).sign())


def merge_into_mlps(base) -> None:
    torch.manual_seed(0)
    for block in base.model.layers:
        for weight in (block.mlp.up_proj.weight, block.mlp.down_proj.weight):
            low = torch.randn(weight.shape[0], 4) @ torch.randn(4, weight.shape[1])
            weight.add_(low * (0.28 * weight.norm() / low.norm()))


FINE_TUNED = {
    "one step at 1e-5": lambda base: step(base, 1e-5),
    "one step at 5e-5": lambda base: step(base, 5e-5),
    "a merged adapter": merge_into_mlps,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", FINE_TUNED)
def test_a_fine_tuned_base_is_another_base(how, dtype):
    """Catches a sample that sees a few weights of a few blocks, at a bound wider than rounding."""
    torch.manual_seed(0)
    # Weights of the size that pretrained models have.
    base = tiny_model("qwen3", config=tiny_config("qwen3", initializer_range=0.02))
    facts = BaseFacts.of(base)
    with pytest.raises(CheckpointError, match="other weights"):
        facts.refuse_other(changed(base, FINE_TUNED[how]), Path("folder"))
    facts.refuse_other(changed(base, lambda other: other.to(dtype)), Path("folder"))


def test_folders_of_earlier_versions_are_compared_by_what_they_hold(base, facts):
    few = {name: facts.sample[name] for name in ("embeddings", "first block", "last block")}
    earlier = dataclasses.replace(facts, sample=few)
    earlier.refuse_other(facts, Path("folder"))
    with pytest.raises(CheckpointError, match=r"of its last block"):
        earlier.refuse_other(
            changed(base, lambda other: other.model.layers[-1].self_attn.q_proj.weight.mul_(1.01)),
            Path("folder"),
        )


def test_the_sample_is_taken_beside_tensors_of_another_class(base, facts):
    """Catches the values of a packed weight, or of one that is sharded, read as if they were plain."""

    class Packed(torch.Tensor):
        pass

    def pack(other) -> None:
        mlp = other.model.layers[1].mlp
        mlp.up_proj.weight = torch.nn.Parameter(mlp.up_proj.weight.neg().as_subclass(Packed))

    packed = changed(base, pack)
    assert "block 1: mlp.up_proj.weight" not in packed.sample
    facts.refuse_other(packed, Path("folder"))


def test_a_weight_with_another_layout_in_memory_is_the_same(base, facts):
    def transpose(other) -> None:
        weight = other.model.layers[1].mlp.up_proj.weight
        weight.data = weight.data.T.contiguous().T

    facts.refuse_other(changed(base, transpose), Path("folder"))


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
    assert not any(part.startswith("block 0: ") for part in quantised.sample)
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
