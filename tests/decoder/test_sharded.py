"""Shards in a process of its own, where nothing is sharded; several run in `tests/train/test_fsdp.py`."""

import torch
from torch import nn

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
