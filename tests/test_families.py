"""Everything a shadowed model promises, for each family of `arch.FAMILIES`. Each test's docstring names the bug it catches."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BLOCKS, LABELS, TINY, VOCAB, WINDOW, padded, perturb, tiny_config, tiny_model, token_ids
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Cache,
    LlamaModel,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    StaticCache,
)

from shadowpeft import ShadowConfig, ShadowedModel, UnsupportedModelError, arch, attach

FAMILIES = sorted(arch.FAMILIES)
CONFIG = ShadowConfig(dropout=0.0, r=4, update_width=5, shadow_loss_weight=0.5)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

# What transformers itself cannot do. The tests below prove it on the bare base instead of skipping.
STATIC_CACHE_FAILS = {"bloom"}  # alibi is as long as the mask, the static cache as long as its room
SLIDES = {"mistral", "qwen2", "gemma2", "gemma3_text"}  # a sliding cache that has slid cannot be cropped back


@pytest.fixture(scope="module", params=FAMILIES)
def model_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def shadowed(model_type: str) -> ShadowedModel:
    """A perturbed language model in evaluation mode; tests that share it only read it."""
    return perturb(attach(tiny_model(model_type), CONFIG))


@pytest.fixture(scope="module")
def classifier(model_type: str) -> ShadowedModel:
    """A perturbed classifier in evaluation mode; tests that share it only read it."""
    return perturb(attach(tiny_model(model_type, "sequence-classification"), CONFIG))


@pytest.fixture(autouse=True)
def _no_grad(request: pytest.FixtureRequest) -> Iterator[None]:
    trains: AbstractContextManager = nullcontext() if request.node.get_closest_marker("trains") else torch.no_grad()
    with trains:
        yield
