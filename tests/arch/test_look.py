"""A look at a model finds the row that it has: the table's own rows are the proof."""

import dataclasses
import re

import pytest
from helpers.families import TINY, tiny_config
from helpers.multimodal import multimodal_config
from transformers import AutoConfig

from shadowpeft.arch import FAMILIES, Family
from shadowpeft.arch.look import BY_HAND, look

# Where a row has another value, and why.
_OTHERWISE = {
    "cohere2": {"head_dim"},  # follows from the width, unless it is set
    "deepseek_v2": {"kv_heads", "head_dim"},  # the attention has sizes of its own
    "deepseek_v3": {"kv_heads", "head_dim"},
    "deepseek_v32": {"kv_heads", "head_dim"},
    "falcon": {"input_norm"},  # another name in the newer layout
    "gemma4_text": {"output_norms"},  # norms of experts beside those of the MLP
    "glm4_moe_lite": {"kv_heads"},  # as DeepSeek
    "glm_moe_dsa": {"kv_heads", "head_dim"},
    "gpt_bigcode": {"kv_heads"},  # one or all, by multi_query
    "gptj": {"passes_kwargs"},  # not before transformers 5.24
    "granitemoehybrid": {"mlp"},  # another field for blocks without experts
    "kimi_linear": {"kv_heads", "head_dim", "context"},  # as DeepSeek, and a name of its own
    "llama4_text": {"mlp"},
    "persimmon": {"kv_heads"},  # not used
    "qwen3_5_moe_text": {"mlp"},
    "solar_open": {"mlp"},
}
_MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": 97}


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_what_is_found_is_what_the_row_says(model_type):
    """Catches a proposed row that would run other blocks, norms or embeddings than the model's."""
    row, seen = FAMILIES[model_type], look(tiny_config(model_type))
    assert (seen.causal, seen.classifier) == (row.causal, row.classifier)
    by_hand = {*BY_HAND, "name", "dense"} | _OTHERWISE.get(model_type, set())
    found = {**dataclasses.asdict(Family("", "", "")), **seen.found, "classifier": seen.classifier}
    wrong = {
        entry.name: (found[entry.name], value)
        for entry in dataclasses.fields(Family)
        if entry.name not in by_hand | {"model_type", "causal"}
        and found[entry.name] != (value := getattr(row, entry.name))
    }
    assert wrong == {}


def test_a_row_can_be_pasted():
    seen = look(AutoConfig.for_model("mpt", **_MODEL))
    row = eval(seen.row(), {"Family": Family})
    assert row == Family(
        "Mpt", "mpt", "MptForCausalLM", "MptForSequenceClassification", decoder="transformer",
        blocks="blocks", input_norm="norm_1", embeddings=("wte",), mlp=None, kv_heads=None, head_dim=None,
        context="max_seq_len", passes_kwargs=False, takes_positions=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "sentence"),
    [
        ("t5", "it is an encoder-decoder"),
        ("qwen2_5_vl", "it is multimodal .*needs a line in arch/multimodal.py"),
        ("mamba", "its configuration has no num_attention_heads"),
        ("bamba", "its blocks are of the kinds linear_attention, and a shadow's must attend"),
        ("bert", "its head is cls.predictions.decoder, and a row's is lm_head"),
        ("jamba", "its blocks are of 2 classes"),
        ("gemma3n_text", "what passes from block to block must be one stream"),
        ("vit", "no causal language model of this model_type"),
    ],
)
def test_what_no_row_describes_is_one_sentence(model_type, sentence):
    misfits = look(AutoConfig.for_model(model_type)).misfits
    assert any(re.search(sentence, line) for line in misfits), misfits


def test_a_mixture_asks_for_the_fields_that_make_it_dense():
    assert look(tiny_config("qwen3_moe")).found["dense"] == '(("mlp_only_layers", EVERY_BLOCK),)'
    assert any("mixture of experts" in line for line in look(tiny_config("mixtral")).misfits)


def test_an_encoder_and_a_class_that_cannot_be_built_are_misfits():
    seen = look(tiny_config("gemma3_text", use_bidirectional_attention=True))
    assert any("use_bidirectional_attention" in line for line in seen.misfits)
    seen = look(tiny_config("llama", hidden_act="nothing"))
    assert any("LlamaForCausalLM cannot be built: " in line for line in seen.misfits)
    assert seen.row() is None


def test_a_multimodal_model_is_looked_at_as_a_whole():
    assert any("it is multimodal" in line for line in look(multimodal_config("gemma3")).misfits)
