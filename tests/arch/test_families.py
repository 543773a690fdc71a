"""The table of families: every row has a tiny model, and what no row describes is refused."""

import pytest
from helpers.families import EVERY, TINY, VOCAB, attached, tiny_config, tiny_model
from helpers.family_cases import FAMILIES
from transformers import LlamaModel, MptConfig, MptForCausalLM

from shadowpeft import UnsupportedModelError, arch


def test_every_family_has_a_tiny_model_of_its_own_kind() -> None:
    """Catches a new row of the table that no test would run."""
    assert sorted(EVERY) == sorted(arch.FAMILIES)
    assert {name: tiny_config(name).model_type for name in TINY} == {name: name for name in FAMILIES}


def test_an_unknown_family_is_refused_by_a_list_of_the_known() -> None:
    """Catches a late, obscure failure inside a layout the table does not describe."""
    model = MptForCausalLM(MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=VOCAB))
    with pytest.raises(UnsupportedModelError) as error:
        attached(model)
    assert all(family.name in str(error.value) for family in arch.FAMILIES.values())


def test_a_headless_class_of_a_known_family_is_refused() -> None:
    """Catches attaching to a decoder without head, whose logits nobody could compute."""
    with pytest.raises(
        UnsupportedModelError,
        match="expected a LlamaForCausalLM or LlamaForSequenceClassification, got LlamaModel",
    ):
        attached(LlamaModel(tiny_config("llama")))


def test_opt_with_projected_embeddings_is_refused() -> None:
    """Catches opt-350m, whose head is narrower than its blocks."""
    with pytest.raises(UnsupportedModelError, match="word_embed_proj_dim"):
        attached(tiny_model("opt", config=tiny_config("opt", word_embed_proj_dim=16)))
