"""The tiny Qwen3 that most tests run on, and a tokenizer that is no use."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config

from shadowpeft.embedded import MODEL


def qwen3_config(**changes) -> Qwen3Config:
    sizes = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    return Qwen3Config(**{**sizes, **changes})


def save_broken_tokenizer(folder: Path) -> None:
    """Save a tokenizer of single signs, as a wrong conversion makes it, beside a configuration."""
    broken = Tokenizer(models.WordLevel({chr(code): code - 32 for code in range(32, 127)}, unk_token="?"))
    broken.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=broken, eos_token="~").save_pretrained(folder)
    (folder / "config.json").write_bytes((MODEL / "config.json").read_bytes())
