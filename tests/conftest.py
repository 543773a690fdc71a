"""Fixtures that several files share, and the switch that skips GPU tests where there is no GPU."""

import helpers.asleep
import helpers.interpreter  # noqa: F401 - before anything imports Triton
import pytest
import torch
from helpers.families import perturb
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, attach


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            # Not by keyword, which would also find a parameter or a folder of this name.
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


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
