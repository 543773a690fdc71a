"""The exported model folder: it is complete, and in shards of the size asked for."""

import json
from pathlib import Path

import pytest
import torch
from helpers.exports import BOUND, error, exported, made, shadow_logits, stock_logits
from helpers.families import tiny_config, tiny_model, token_ids
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.errors import ConfigError
from shadowpeft.export.folder import bytes_of, refuse_shard_size


def test_the_folder_is_complete(tmp_path: Path) -> None:
    """Catches a folder without chat template, generation settings or special tokens: it would answer
    otherwise than the adapter did."""
    model = made(tiny_config("qwen3"))
    model.base.generation_config.update(temperature=0.5, do_sample=True, max_new_tokens=9, eos_token_id=7)
    folder = exported(model, tmp_path)
    tokenizer, before = (
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(tmp_path / "base"),
    )
    assert tokenizer.get_vocab() == before.get_vocab()
    assert tokenizer.special_tokens_map == before.special_tokens_map
    chat = [{"role": "user", "content": "what is two"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(
        chat, tokenize=False
    )
    settings = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (settings.temperature, settings.do_sample, settings.max_new_tokens) == (0.5, True, 9)
    assert settings.eos_token_id == sorted({7, before.eos_token_id}), (
        "what ends a completion in training ends one here"
    )
    assert "auto_map" not in json.loads((folder / "config.json").read_text(encoding="utf-8")), (
        "no code of ours is needed"
    )


def test_large_weights_are_sharded(tmp_path: Path) -> None:
    """Catches --max-shard-size without effect."""
    model = made(tiny_config("llama"))
    folder = exported(model, tmp_path, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    ids = token_ids(2, 9)
    assert error(stock_logits(folder, input_ids=ids), shadow_logits(model, input_ids=ids)) < BOUND


@pytest.mark.parametrize("size", [None, "1KB", "500MB", "2GB", "10TB"])
def test_a_size_that_transformers_reads_passes(size: str | None) -> None:
    refuse_shard_size(size)


@pytest.mark.parametrize("size", ["", "0GB", "2", "GB", "2gb", "2.5GB", "-1GB", "2GB ", "2 GB"])
def test_any_other_size_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=f"such as 500MB or 2GB, got {size!r}$"):
        refuse_shard_size(size)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_count_once(tied: bool, tmp_path: Path) -> None:
    """Catches an estimate of the room that is off by a table of embeddings."""
    model = tiny_model("llama", config=tiny_config("llama", tie_word_embeddings=tied)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors").values()
    assert bytes_of(model) == sum(tensor.numel() * 2 for tensor in tensors)
