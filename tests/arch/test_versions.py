"""The one place that knows what differs between versions of transformers."""

import inspect
import warnings
from collections.abc import Iterator

import pytest
import torch
import transformers
from helpers.families import attached, tiny_model
from transformers import LlamaModel, TrainingArguments
from transformers.cache_utils import DynamicSlidingWindowLayer

from shadowpeft.arch import versions


@pytest.fixture
def _as_at_the_start() -> Iterator[None]:
    versions.warn_if_untested.cache_clear()
    yield
    versions.warn_if_untested.cache_clear()


def test_the_names_are_those_of_this_version() -> None:
    """Catches a name that transformers would deprecate or drop, where we hand it over ourselves."""
    assert versions.CACHE in inspect.signature(LlamaModel.forward).parameters
    assert versions.CACHE in versions.CACHE_NAMES
    assert versions.CHECKPOINTING in inspect.signature(TrainingArguments).parameters


@pytest.mark.usefixtures("_as_at_the_start")
@pytest.mark.parametrize("version", ["5.16.4", "5.25.0", "5.25.0.dev0", "6.0.0rc1"])
def test_an_untested_version_warns_once(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a warning that does not come, does not name the tested range, or comes again."""
    monkeypatch.setattr(versions.transformers, "__version__", version)
    base = tiny_model("llama")
    print(
        versions.warn_if_untested.cache_info(),
        versions.transformers.__version__,
        transformers.__version__,
        versions.transformers is transformers,
    )
    with pytest.warns(UserWarning, match=f"transformers 5.17 to 5.24, and this is {version}"):
        attached(base).unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(base)


@pytest.mark.usefixtures("_as_at_the_start")
@pytest.mark.parametrize("version", ["5.17.0", "5.24.3", transformers.__version__])
def test_a_tested_version_does_not_warn(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a patch release taken for a newer version."""
    monkeypatch.setattr(versions.transformers, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached(tiny_model("llama"))


def test_a_layer_that_keeps_its_past_returns_its_window() -> None:
    """Catches more keys than the mask is made for, which 5.17 returns from the second pass on."""
    layer = DynamicSlidingWindowLayer(3)
    layer.activate_past_recording()
    versions.show_window_alone(layer)
    for number in range(1, 6):
        keys, values = layer.update(*torch.full((2, 1, 1, 1, 1), float(number)))
        assert keys.flatten().tolist() == list(range(max(1, number - 2), number + 1))
        assert torch.equal(keys, values)
    assert layer.get_seq_length() == layer.keys.shape[2] == 5
    versions.show_all(layer)
    assert "update" not in vars(layer)


def test_recomputing_is_switched_on_and_off() -> None:
    """Catches a switch under a name that only some versions know."""
    model = attached(tiny_model("llama"))
    blocks = model.base.model.layers
    versions.recompute_activations(model, use_reentrant=False)
    assert all(block.gradient_checkpointing for block in blocks)
    versions.keep_activations(model)
    assert not any(block.gradient_checkpointing for block in blocks)
