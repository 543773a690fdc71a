"""A base is looked at once, from its small files, before its weights are loaded."""

import pytest
from helpers.runs import save_base
from helpers.tokenizers import words_tokenizer

from shadowpeft import ConfigError, UnsupportedModelError
from shadowpeft.model import preflight
from shadowpeft.storage import stock_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "model", max_position_embeddings=64)


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(stock_models, "load_model", lambda *_: pytest.fail("the weights were loaded"))


def test_a_random_shadow_has_the_configuration_of_its_base(folder, no_weights):
    """Catches a look at the base that loads it, and a shadow's configuration from nowhere."""
    found = preflight.inspect(str(folder), needs_family=True)
    assert found.shadow is found.config
    assert found.config.num_hidden_layers == 3
    assert found.positions == 64
    assert found.tokenizer.eos_token_id is not None


def test_positions_are_those_that_base_and_shadow_both_take(folder, tmp_path, no_weights):
    """Catches rows that are longer than the shadow's positions."""
    short = save_base(tmp_path / "short", max_position_embeddings=48)
    assert preflight.inspect(str(folder), str(short), needs_family=True).positions == 48
    assert preflight.inspect(str(short), str(folder), needs_family=True).positions == 48


def test_a_shadow_with_other_tokens_is_refused(folder, tmp_path, no_weights):
    """Catches a plain model with another tokenizer as the shadow."""
    other = save_base(tmp_path / "other")
    words_tokenizer().save_pretrained(other)
    with pytest.raises(ConfigError, match="token"):
        preflight.inspect(str(folder), str(other), needs_family=True)


def test_an_unknown_family_is_refused_before_a_missing_tokenizer(tmp_path):
    """Catches a message about a tokenizer where the model itself cannot be used."""
    from transformers import MptConfig

    MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=32).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError):
        preflight.inspect(str(tmp_path), needs_family=True)
