"""Fixtures that several files share, and the switch that skips GPU tests where there is no GPU."""

import gc
import random
import zlib
from collections.abc import Iterator

import helpers.asleep
import helpers.interpreter  # noqa: F401 - before anything imports Triton
import numpy as np
import pytest
import torch
from helpers.families import LIKE_ANOTHER, perturb
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM, PreTrainedModel

from shadowpeft import ShadowConfig, ShadowedModel, attach


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests without garbage collections, of which each would search all that is there."""
    gc.disable()
    found = yield
    gc.enable()
    return found


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_collect() -> None:
    """Keep what is imported, and the thousands of tests, out of garbage collections.

    A Trainer asks for one in every run: half a second, which is more than most runs here take. Each file's
    tests add imports, and the package's benchmarks put back what is kept out.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def _seeded(name: str) -> None:
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    """Draw what a fixture draws from a seed of its own, whatever tests ran before."""
    _seeded(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Draw what a test draws from a seed of its own, whatever tests ran before."""
    _seeded(item.nodeid)


# Before pytest leaves out what `-m` deselects.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if LIKE_ANOTHER.intersection(_words_of(item)):
            item.add_marker(pytest.mark.slow if _says_most(item) else pytest.mark.families)
    if not torch.cuda.is_available():
        for item in items:
            # Not by keyword, which would also find a parameter or a folder of this name.
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _says_most(item: pytest.Item) -> bool:
    """Return whether a test would notice most of what can be wrong in a family's row."""
    return "tests/arch/" in item.nodeid or "test_training_moves_the_whole_shadow" in item.nodeid


def _words_of(item: pytest.Item) -> Iterator[str]:
    """Return the words among the parameters of a test; a family's is among them."""
    call = getattr(item, "callspec", None)
    for value in call.params.values() if call else ():
        parts = value if isinstance(value, tuple) else (value,)
        yield from (part for part in parts if isinstance(part, str))


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
