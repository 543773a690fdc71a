"""The table of families: every row has a tiny model, and what no row describes is refused."""

import copy

import pytest
import torch
from helpers.families import EVERY, TINY, VOCAB, attached, perturb, tiny_config, tiny_model, token_ids
from helpers.family_cases import CONFIG, FAMILIES, close, step_by_step
from transformers import AutoConfig, LlamaModel, MptConfig, MptForCausalLM

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


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("llama", ["head_dim", "num_key_value_heads", "pad_token_id"]),
        ("mistral", ["head_dim", "pad_token_id"]),
        ("mixtral", ["head_dim"]),
        ("phi3", ["num_key_value_heads"]),
        ("qwen2", ["layer_types", "pad_token_id", "num_key_value_heads"]),
        ("gemma3_text", ["layer_types"]),
        ("qwen3_5_text", ["layer_types"]),
        ("olmo3", ["layer_types", "num_key_value_heads"]),
    ],
)
@torch.no_grad()
def test_fields_that_are_null_in_real_checkpoints_mean_what_they_mean_to_the_stock_model(
    model_type: str, fields: list[str]
) -> None:
    """Catches arithmetic with a null, and a shadow or a detached model of other sizes."""
    values = {**copy.deepcopy(TINY[model_type]), **dict.fromkeys(fields)}
    config = AutoConfig.for_model(model_type, **values)
    model, ids = perturb(attached(tiny_model(model_type, config=config), CONFIG)).eval(), token_ids(2, 12)
    steps = step_by_step(model, model.new_cache(), ids, first=4)
    close(steps, model(ids).logits)
    want = model(ids, output_shadow_logits=True).shadow_logits
    close(model.detached()(ids).logits, want)
