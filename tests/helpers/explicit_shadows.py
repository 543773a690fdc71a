"""Pairs of a base and another model whose decoder is its explicit shadow."""

from collections.abc import Callable
from typing import Any

import pytest

from helpers.families import attached, tiny_config, tiny_model
from helpers.family_cases import CHANGES
from shadowpeft import ShadowConfig, ShadowedModel, arch

# Base and shadow: of one width, narrower (so that P exists), of another family, and with the heads that only
# their own family has.
PAIRS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "one width": (
        lambda: tiny_config("qwen3"),
        lambda: tiny_config("qwen3", num_hidden_layers=2, layer_types=["full_attention"] * 2),
    ),
    "narrower": (lambda: tiny_config("qwen3"), lambda: tiny_config("qwen3", hidden_size=16)),
    "another family": (lambda: tiny_config("llama"), lambda: tiny_config("qwen2", hidden_size=24)),
    "sliding beside full": (
        lambda: tiny_config("llama"),
        lambda: tiny_config("mistral", hidden_size=16, tie_word_embeddings=True),
    ),
    "soft cap": (lambda: tiny_config("gemma2"), lambda: tiny_config("gemma2", hidden_size=16)),
    "tables and shared keys": (
        lambda: tiny_config("gemma4_text", enable_moe_block=False),
        lambda: tiny_config("gemma4_text", enable_moe_block=False, hidden_size=16),
    ),
    "head with a bias": (lambda: tiny_config("gptj"), lambda: tiny_config("gptj", n_embd=16)),
}


def explicit(
    pair: str, task: arch.Task = "causal-lm", variant: Any = "normed", **settings: Any
) -> ShadowedModel:
    """A base with another model's decoder as its shadow."""
    base_config, shadow_config = (make() for make in PAIRS[pair])
    base = tiny_model(base_config.model_type, task, config=base_config)
    shadow = tiny_model(shadow_config.model_type, seed=7, config=shadow_config)
    return attached(base, ShadowConfig(variant=variant, **{**CHANGES, **settings}), shadow=shadow)


EXPLICIT = pytest.mark.parametrize(
    ("pair", "variant"), [*((pair, "normed") for pair in PAIRS), ("narrower", "paper"), ("narrower", "peft")]
)
