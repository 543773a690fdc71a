"""Strict reading: files are checked before a module is built, and a module gets exactly the tensors of its
file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig

from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.storage.reading import (
    compare,
    load_module,
    read_header,
    read_meta,
    read_object,
    shapes_of,
    stock_config,
)

DESCRIPTION, WEIGHTS = Path("folder/config.json"), Path("folder/weights.safetensors")


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.clone() for name, tensor in build().state_dict().items()}, path)
    return path


# Descriptions


@pytest.mark.parametrize("content", ["{", "", "\x00", "[" * 100000], ids=["cut", "empty", "binary", "nested"])
def test_what_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config.json is not valid JSON"):
        read_object(tmp_path / "config.json")


def test_a_missing_file_and_a_folder_in_its_place_are_different_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        read_object(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config.json cannot be read: "):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "found"),
    [("[2]", "None"), ("{}", "None"), ('{"format": "2"}', "'2'"), ('{"format": [2]}', r"\[2\]")],
)
def test_another_format_is_refused(tmp_path, content, found):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=f"has format {found}, this version .* reads format 2 or 3; make it"
    ):
        read_meta(tmp_path / "config.json", (2, 3), ("format",))


def test_a_known_format_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 3, "é": [1]}', encoding="utf-8")
    assert read_meta(tmp_path / "config.json", (2, 3), ("format", "é")) == {"format": 3, "é": [1]}


def test_a_key_that_nothing_reads_is_named_with_the_nearest(tmp_path):
    """Catches a setting in the wrong place, or misspelt, that is ignored without a word."""
    (tmp_path / "config.json").write_text('{"format": 3, "shadwo": {}}', encoding="utf-8")
    message = r"unknown key shadwo \(did you mean 'shadow'\?\); it may hold format, shadow: remove the key"
    with pytest.raises(CheckpointError, match=message):
        read_meta(tmp_path / "config.json", (3,), ("format", "shadow"))


def test_a_configuration_is_of_its_family_whatever_else_it_names():
    config = stock_config(
        {"model_type": "llama", "hidden_size": 64, "auto_map": {"AutoConfig": "evil.Config"}}, "x"
    )
    assert type(config) is LlamaConfig
    assert config.hidden_size == 64
    assert "auto_map" not in config.to_dict()


@pytest.mark.parametrize("family", [None, [], 3, "evil", "bert"])
def test_another_family_is_refused(family):
    with pytest.raises(
        CheckpointError, match=r"the shadow is of the family .*, which is not supported; supported: "
    ):
        stock_config({"model_type": family}, "the shadow")


@pytest.mark.parametrize("values", [{"hidden_size": "x"}, {"num_hidden_layers": [2]}])
def test_a_value_that_the_family_does_not_take_is_one_sentence(values):
    """Catches an error of transformers' own for a damaged file."""
    with pytest.raises(CheckpointError, match=r"^the shadow has a configuration that llama does not take: "):
        stock_config({"model_type": "llama", **values}, "the shadow")


# Shapes


def test_shapes_cost_no_memory():
    """Catches a module that is built for real: this one would take 4 TB."""
    shapes = shapes_of(lambda: nn.Linear(10**6, 10**6), DESCRIPTION, WEIGHTS, layers=1, tensors=2)
    assert shapes == {"weight": (10**6, 10**6), "bias": (10**6,)}


@pytest.mark.parametrize("layers", [3, 10**9, None, "1", 1.0])
def test_more_blocks_than_tensors_are_refused_unbuilt(layers):
    with pytest.raises(
        CheckpointError, match=f"config.json asks for {layers} shadow blocks, .* holds 2 tensors"
    ):
        shapes_of(lambda: pytest.fail("it was built"), DESCRIPTION, WEIGHTS, layers=layers, tensors=2)


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, AttributeError, RuntimeError])
def test_what_cannot_be_built_is_one_sentence(error):
    def fail():
        raise error("first line\n  second line")

    with pytest.raises(
        CheckpointError, match=r"does not describe a shadow that can be built: .*first line"
    ) as raised:
        shapes_of(fail, DESCRIPTION, WEIGHTS, layers=1, tensors=2)
    assert "\n" not in str(raised.value)


def test_our_own_errors_pass():
    def fail():
        raise ConfigError("r must be 1 or more")

    with pytest.raises(ConfigError, match=r"r must be 1 or more"):
        shapes_of(fail, DESCRIPTION, WEIGHTS, layers=1, tensors=2)


def test_the_header_has_names_and_shapes(weights):
    assert read_header(weights) == {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (1, 3)}


@pytest.mark.parametrize("keep", [0, 5, 200, -4])
def test_a_truncated_file_is_one_clear_error(weights, keep):
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"weights.safetensors is damaged or cut short"):
        read_header(weights)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"weights.safetensors is missing"):
        read_header(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_only_floating_point_tensors_are_weights(weights, dtype):
    save_file({"a": torch.zeros(3), "norm.bias": torch.zeros(3, dtype=dtype)}, weights)
    with pytest.raises(
        CheckpointError, match=r"norm\.bias is not of a floating-point type \(F16, BF16, F32, F64\)"
    ):
        read_header(weights)


def test_the_first_three_differences_are_named():
    wanted = {"a": (1,), "b": (2,), "c": (3,), "d": (4,), "same": (5,)}
    compare(WEIGHTS, wanted, dict(wanted))
    with pytest.raises(CheckpointError, match=r"missing a; missing b; extra x and 2 more$"):
        compare(WEIGHTS, wanted, {"c": (1,), "d": (4, 1), "same": (5,), "x": (1,)})
    with pytest.raises(CheckpointError, match=r"configuration: a has shape \(2,\), expected \(1,\)$"):
        compare(WEIGHTS, wanted, {**wanted, "a": (2,)})


# Modules


def test_a_module_gets_the_tensors_of_its_file_at_their_precision(weights):
    """Catches a loader that rounds to the default type on the way, and one that leaves a new module's
    values."""
    saved = {
        name: torch.randn_like(tensor, dtype=torch.float64) for name, tensor in build().state_dict().items()
    }
    save_file(saved, weights)
    found = load_module(build, DESCRIPTION, weights, layers=1).state_dict()
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("1.weight"), "missing 1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra extra"),
        (
            lambda state: state.update({"0.bias": torch.zeros(1, 3)}),
            r"0.bias has shape \(1, 3\), expected \(3,\)",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_memory_is_allocated(weights, change, message):
    state = build().state_dict()
    change(state)
    save_file(state, weights)

    def only_without_memory() -> nn.Module:
        assert torch.empty(0).is_meta, "a module was built although its file does not fit"
        return build()

    with pytest.raises(CheckpointError, match=f"does not fit its configuration: {message}"):
        load_module(only_without_memory, DESCRIPTION, weights, layers=1)
