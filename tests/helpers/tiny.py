"""The tiny Qwen3 that most tests run on."""

from transformers import Qwen3Config


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
