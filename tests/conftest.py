"""Fixtures that several files share, and the switch that skips GPU tests where there is no GPU."""

import interpreter  # noqa: F401 - before anything imports Triton
import pytest
import torch
from families import perturb
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from shadowpeft import ShadowConfig, ShadowedModel, attach


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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


@pytest.fixture
def base() -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(qwen3_config()).eval()


@pytest.fixture(params=["normed", "paper"])
def model(base, request) -> ShadowedModel:
    torch.manual_seed(1)
    return perturb(attach(base, ShadowConfig(variant=request.param, alpha=0.5)))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 97, (2, 11), generator=torch.Generator().manual_seed(3))
