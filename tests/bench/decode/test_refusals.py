"""What cannot be measured is said before weights are built."""

import pytest
import torch
from helpers.benches import CPU

from shadowpeft.bench import shapes
from shadowpeft.bench.decode.refusals import refuse
from shadowpeft.bench.decode.settings import DecodeBench
from shadowpeft.errors import ConfigError
from shadowpeft.ops import choice


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch):
    monkeypatch.setattr(shapes, "build", lambda *_, **__: pytest.fail("weights were built"))


@pytest.mark.parametrize("way", ["graph", "compiled"])
def test_a_way_that_a_cpu_lacks(way):
    """Catches a name that was asked for and is left out in silence."""
    with pytest.raises(ConfigError, match=f"the way {way} needs .*, and the device is cpu; choose ways=gen"):
        refuse(DecodeBench(shape="tiny", methods="base", ways=way), CPU)
    assert refuse(DecodeBench(shape="tiny", methods="base"), CPU).keys() == {"graph", "compiled"}
    assert (
        refuse(DecodeBench(shape="tiny", methods="base", ways="generate,graph"), torch.device("cuda")) == {}
    )


def test_an_implementation_that_cannot_run(monkeypatch):
    monkeypatch.setattr(choice, "no_triton", lambda: "needs a GPU")
    with pytest.raises(ConfigError, match="impl='triton' needs a GPU"):
        refuse(DecodeBench(shape="tiny", methods="base,draft:triton"), CPU)
    assert "impl='triton' needs a GPU" in refuse(DecodeBench(shape="tiny"), CPU)["triton"]


def test_a_prompt_that_does_not_fit():
    said = "context and new_tokens must together be at most 256, the context of tiny, got 280"
    with pytest.raises(ConfigError, match=said):
        refuse(DecodeBench(shape="tiny", context="16,256", new_tokens=24, methods="base"), CPU)
    refuse(DecodeBench(shape="tiny", context="232", new_tokens=24, methods="base"), CPU)


def test_another_device():
    with pytest.raises(ConfigError, match="mps cannot be timed yet"):
        refuse(DecodeBench(shape="tiny"), torch.device("mps"))
