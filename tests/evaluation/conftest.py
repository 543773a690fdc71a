"""A tiny shadowed model with a tokenizer, which tests measure and leave as it was."""

import pytest
import torch
from helpers.families import perturb
from helpers.tiny import qwen3_config
from helpers.tokenizers import build_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from shadowpeft import ShadowConfig, ShadowedModel, attach


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="session")
def shadowed(tokenizer) -> ShadowedModel:
    # The first seed whose model gives answers that all differ, are not empty and do not end at once.
    torch.manual_seed(2)
    base = AutoModelForCausalLM.from_config(
        qwen3_config(vocab_size=len(tokenizer), pad_token_id=2, eos_token_id=1, tie_word_embeddings=False)
    )
    return perturb(attach(base.eval(), ShadowConfig(alpha=1.0)))
