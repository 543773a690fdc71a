"""What the doctor says of a model from its config.json alone."""

import json

import pytest
import torch
from helpers.families import tiny_config, tiny_model
from helpers.multimodal import multimodal_config
from transformers import AutoConfig

from shadowpeft import UserError, attach
from shadowpeft.doctor.model import examine


def folder(tmp_path, config, **changes):
    """Write a folder with a config.json and nothing else; return its path."""
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return str(tmp_path)


def test_a_known_model_is_named_and_a_default_shadow_counted(tmp_path):
    facts = examine(folder(tmp_path, tiny_config("qwen3")))
    assert (facts["family"], facts["causal"]) == ("Qwen3", "Qwen3ForCausalLM")
    assert facts["row"]["decoder"] == "model"
    assert facts["can"] == dict.fromkeys(
        ["train", "classify", "packing", "full_graph", "assisted", "gguf"], True
    )
    model = attach(tiny_model("qwen3"))
    assert facts["shadow"]["parameters"] == model.num_parameters(only_trainable=True)
    assert facts["shadow"]["shadow_intermediate_size"] == model.adapter.settings.shadow_intermediate_size
    assert facts["base"] == {"parameters": tiny_model("qwen3").num_parameters(), "blocks": 4, "width": 32}
    assert facts["misfits"] == []
    json.dumps(facts)


def test_what_a_family_cannot_is_a_sentence(tmp_path):
    can = examine(folder(tmp_path, tiny_config("qwen3_5_text")))["can"]
    assert can["assisted"] == "its blocks keep a recurrent state"
    assert can["gguf"].startswith("a Qwen3.5 (text) shadow cannot be written as GGUF")
    can = examine(folder(tmp_path, tiny_config("bloom")))["can"]
    assert {name for name, answer in can.items() if answer is not True} == {"packing", "full_graph", "gguf"}
    assert (
        "no sequence classifier of Cohere"
        in examine(folder(tmp_path, tiny_config("cohere")))["can"]["classify"]
    )


def test_fields_that_are_left_open_are_named_with_their_values(tmp_path):
    source = folder(tmp_path, tiny_config("llama"), num_key_value_heads=None, pad_token_id=None)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["head_dim"]
    path.write_text(json.dumps(values), encoding="utf-8")
    assert examine(source)["open_fields"] == [
        "num_key_value_heads is null in config.json; its value is 4",
        "head_dim is missing in config.json; its value is 8",
        "pad_token_id is null in config.json; its value is None",
    ]
    assert examine(folder(tmp_path, tiny_config("gpt2"), n_inner=None))["open_fields"] == [
        "n_inner is null in config.json; its value is None"
    ]


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "qwen3_vl"])
def test_a_multimodal_model_is_known_by_its_text_path(kind, tmp_path):
    facts = examine(folder(tmp_path, multimodal_config(kind)))
    names = {"gemma3": "Gemma 3 (text)", "mistral3": "Mistral", "qwen3_vl": "Qwen3"}
    assert facts["family"] == names[kind]
    assert facts["causal"].endswith("ForConditionalGeneration")
    assert facts["can"]["train"] is True
    assert (facts["can"]["classify"] is True) == (kind == "gemma3")
    assert "tie_word_embeddings" not in "".join(facts["open_fields"]) or kind != "gemma3"


def test_an_unknown_model_gets_a_row_to_paste(tmp_path):
    facts = examine(
        folder(tmp_path, AutoConfig.for_model("gpt_neo", num_layers=2, attention_types=[[["global"], 2]]))
    )
    assert facts["family"] is None
    assert facts["proposed"].startswith('Family("GPTNeo", "gpt_neo", "GPTNeoForCausalLM", "GPTNeoForSequence')
    assert facts["found"]["decoder"] == "transformer"
    json.dumps(facts)


def test_an_unknown_multimodal_model_is_looked_at_inside(tmp_path):
    llava = AutoConfig.for_model("llava", text_config=tiny_config("llama").to_dict())
    misfits = examine(folder(tmp_path / "llava", llava))["misfits"]
    assert any("needs a line in arch/multimodal.py" in line for line in misfits)
    assert any("its language model, llama: it has a row, Llama, so the line" in line for line in misfits)
    facts = examine(folder(tmp_path / "qwen", AutoConfig.for_model("qwen2_5_vl")))
    assert any(
        "its language model, qwen2_5_vl_text: transformers has no causal" in x for x in facts["misfits"]
    )


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (AutoConfig.for_model("t5"), "encoder-decoder"),
        (tiny_config("gemma3_text", use_bidirectional_attention=True), "is an encoder"),
        (tiny_config("llama", architectures=["LlamaForTokenClassification"]), "whose head is not that of"),
        (tiny_config("opt", word_embed_proj_dim=16), "word_embed_proj_dim"),
    ],
    ids=["t5", "embedding", "head", "opt-350m"],
)
def test_what_cannot_be_trained_is_said(config, sentence, tmp_path):
    facts = examine(folder(tmp_path, config))
    assert any(sentence in line for line in facts["misfits"]), facts["misfits"]
    assert facts.get("can", {}).get("train") is not True


def test_nothing_is_drawn_and_no_weights_are_made(tmp_path):
    """Catches a doctor that fills the memory with a model of 671 billion weights."""
    source = folder(tmp_path, AutoConfig.for_model("deepseek_v3"))
    state = torch.get_rng_state()
    facts = examine(source)
    assert facts["base"]["parameters"] > 6e11
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_cannot_be_reached_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no model folder"):
        examine(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}', encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot be loaded: .*`nothing_known`") as raised:
        examine(str(tmp_path))
    assert "\n" not in str(raised.value)
