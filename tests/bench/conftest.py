"""A tiny base, and token ids for it."""

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench import shapes
from shadowpeft.bench.snapshot import BaseSnapshot


@pytest.fixture(scope="session")
def snapshot() -> BaseSnapshot:
    return BaseSnapshot(shapes.build("tiny", CPU, torch.float32, 0))


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 512, (2, 16), generator=torch.Generator().manual_seed(1))
