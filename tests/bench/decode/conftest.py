"""The methods of a tiny base, and a prompt for them."""

import pytest
import torch
from helpers.benches import CPU
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM

from shadowpeft.bench.decode.methods import Loader
from shadowpeft.bench.decode.prompts import Prompt, random_prompt
from shadowpeft.bench.decode.subject import Subject
from shadowpeft.bench.decode.weights import SharedWeights


@pytest.fixture(scope="session")
def loader() -> Loader:
    torch.manual_seed(0)
    # Weights so large that the text is not one token over and over.
    config = qwen3_config(vocab_size=512, eos_token_id=None, tie_word_embeddings=False)
    base = AutoModelForCausalLM.from_config(config)
    return Loader(SharedWeights(base), Subject(shape="tiny"), None, 0)


@pytest.fixture(scope="session")
def prompt() -> Prompt:
    return random_prompt(512, batch=1, context=8, new_tokens=24, seed=1, device=CPU)
