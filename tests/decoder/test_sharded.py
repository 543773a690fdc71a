"""Shards in a process of its own, where nothing is sharded; several run in `tests/train/test_fsdp.py`."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from shadowpeft.decoder import sharded


def test_one_process_gathers_and_divides_nothing():
    """Catches a state that is copied, moved or renamed where nothing is sharded."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = model.state_dict()
    gathered = sharded.whole(state)
    assert gathered is not state
    assert all(gathered[name] is tensor for name, tensor in state.items())
    before = optimizer.state_dict()
    after = sharded.divided(sharded.whole(before), optimizer)
    assert after == before


def test_a_head_outside_sharding_is_no_unit():
    """Catches a plain head that is gathered, for which it has no method."""
    head = nn.Linear(3, 2).requires_grad_(False)
    assert not sharded.is_frozen_linear(head)
    assert sharded.with_whole(head, lambda: head.weight) is head.weight


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_gathered_state_is_cut_up_again(group):
    """Catches a saved adapter that a sharded one cannot load."""
    layer = nn.Linear(3, 2)
    expected = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    cut = sharded.like(expected, layer.state_dict())
    assert all(isinstance(tensor, DTensor) for tensor in cut.values())
    layer.load_state_dict(cut, strict=True)
    gathered = sharded.whole(layer.state_dict())
    assert all(torch.equal(gathered[name], tensor) for name, tensor in expected.items())
