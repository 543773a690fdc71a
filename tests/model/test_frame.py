"""The shadow state of one forward pass: its gradients, with and without checkpointing, and what it reads."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids
from helpers.family_cases import loss_and_gradients
from torch import nn

from shadowpeft import ShadowConfig, arch, attach
from shadowpeft.train.arguments import recompute_activations


def test_gradient_checkpointing_changes_no_gradient(model_type: str, config: ShadowConfig) -> None:
    """Catches a recomputed block that sees another shadow state, and checkpointing that is silently off."""
    model, ids, runs = perturb(attached(tiny_model(model_type), config)).train(), token_ids(2, 9), []
    block = arch.blocks_of(model.base)[1]
    read = arch.input_norm_of(block, arch.FAMILIES[model_type])  # which the shadow runs too
    leaf = next(module for module in block.modules() if not [*module.children()] and module is not read)
    hook = leaf.register_forward_pre_hook(lambda *_: runs.append(1))
    loss, expected = loss_and_gradients(model, ids, ids)
    assert len(runs) == 1
    recompute_activations(model)
    loss_again, found = loss_and_gradients(model, ids, ids)
    assert len(runs) == 3
    hook.remove()
    torch.testing.assert_close(loss_again, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
def test_blocks_below_the_first_injection_need_no_backward(base, ids, variant):
    """Catches a gradient path into blocks that `inject_from` leaves alone."""
    model = perturb(attach(base, ShadowConfig(variant=variant, inject_from=2)))
    states = model(ids, output_hidden_states=True).hidden_states
    assert [state.requires_grad for state in states] == [False, False, False, True, True]


@torch.no_grad()
def test_what_is_replaced_between_two_calls_is_read_anew(base, ids):
    """Catches a block, a norm, a weight or a setting as it was at a former call."""
    model = perturb(attach(base, ShadowConfig(inject_from=0))).eval()
    blocks, adapter = arch.blocks_of(base), model.adapter
    block, injection, update = blocks[2], adapter.injections[1], adapter.updates[0]
    other = copy.deepcopy(block)
    for weight in other.parameters():
        weight.mul_(1.5)

    def twice(module: nn.Module, name: str) -> None:
        part = copy.deepcopy(module.get_submodule(name))
        part.weight.mul_(2)
        setattr(module, name, part)

    changes = {
        "block": lambda: blocks.__setitem__(2, other),
        "norm": lambda: twice(other, arch.family_of(base).input_norm),
        "layer": lambda: twice(injection, "up"),
        "weight": lambda: setattr(update.gate_in, "weight", nn.Parameter(2 * update.gate_in.weight)),
        "memory": lambda: setattr(update.gate_out.weight, "data", 2 * update.gate_out.weight.data),
        "alpha": lambda: setattr(adapter, "settings", replace(adapter.settings, alpha=0.9)),
    }
    before = model(ids).logits
    for name, change in changes.items():
        change()
        after = model(ids).logits
        assert not torch.equal(after, before), name
        assert torch.equal(after, copy.deepcopy(model)(ids).logits), name
        before = after
