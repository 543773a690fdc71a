"""Tiny models that are served, each loaded once."""

import copy

import pytest
import torch
from helpers.families import attached, perturb
from helpers.runs import one_thread, save_base  # noqa: F401 - a fixture
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig
from shadowpeft.serve.local import LocalModel

LIMIT = 100


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def shadowed(base_folder):
    """A base with the adapters `default` and `other`."""
    model = perturb(attached(AutoModelForCausalLM.from_pretrained(base_folder), ShadowConfig(alpha=0.5)))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model.add_adapter("other", ShadowConfig(alpha=0.5))
    return perturb(model, seed=7).eval()


@pytest.fixture(scope="session")
def adapter_folder(shadowed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    shadowed.save_pretrained(folder, selected_adapters=["default"])
    return folder


@pytest.fixture(scope="session")
def models(shadowed, base_folder):
    """All that the two adapters can be."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    drafts = {"draft": "shadow", "draft_tokens": 3}
    return {
        "attached": LocalModel(shadowed, tokenizer, LIMIT, "default"),
        "other": LocalModel(shadowed, tokenizer, LIMIT, "other"),
        "drafting": LocalModel(shadowed, tokenizer, LIMIT, "default", drafts),
        "detached": LocalModel(copy.deepcopy(shadowed.detached("default")).eval(), tokenizer, LIMIT),
        "base": LocalModel(shadowed._base(), tokenizer, LIMIT),
    }
