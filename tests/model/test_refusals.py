"""Refusals of a base that is not as a shadow needs it."""

import pytest
import torch
from helpers.families import BLOCKS, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shadowpeft import UserError, attach
from shadowpeft.model.refusals import refuse_several_devices


def put(base: nn.Module, block: int, device: str) -> None:
    """Put a weight of a block onto a device, without its values where this machine has no such device."""
    mlp = base.get_submodule(f"model.layers.{block}.mlp")
    with FakeTensorMode():
        mlp.gate_proj.weight = nn.Parameter(torch.empty(48, 32, device=device))


def test_a_base_on_several_devices_is_refused() -> None:
    """Catches torch's own words at the first boundary on the second device, once a model has been loaded."""
    base = tiny_model("llama")
    put(base, 2, "cuda:1")
    with pytest.raises(UserError, match=r"blocks are on cpu and cuda:1, .*one device"):
        attach(base)
    assert all(weight.requires_grad for weight in base.parameters())


def test_a_base_cut_for_several_processes_is_refused() -> None:
    """Catches adapters that start otherwise in each process, and other rows for each part of one layer."""
    base = tiny_model("llama")
    base._device_mesh = "what transformers keeps of the processes"
    with pytest.raises(UserError, match=r"tp_plan or distributed_config.*load the base whole"):
        attach(base)
    assert all(weight.requires_grad for weight in base.parameters())


def test_an_offloaded_block_is_on_no_device_of_its_own() -> None:
    base = tiny_model("llama")
    for block in range(BLOCKS):
        put(base, block, "meta")
    refuse_several_devices(base)
