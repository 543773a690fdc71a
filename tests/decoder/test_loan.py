"""A base is given back as it was lent, whatever was done to it in between."""

import copy
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids
from helpers.family_cases import loss_and_gradients
from transformers import PreTrainedModel

from shadowpeft import ShadowConfig, arch, attach
from shadowpeft.train.arguments import recompute_activations

# transformers gives every block these two attributes when checkpointing is first switched on, and leaves them
# there.
_CHECKPOINTING = {"gradient_checkpointing", "_gradient_checkpointing_func"}


def facts(base: PreTrainedModel) -> dict[str, Any]:
    """All that `unload` must give back as it was."""
    hooks = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
    )
    return {
        "class": type(base),
        "config": base.config.to_dict(),
        "generation": base.generation_config.to_dict(),
        "training": {name: module.training for name, module in base.named_modules()},
        "classes": {name: type(module) for name, module in base.named_modules()},
        "hooks": {name: [len(vars(module)[hook]) for hook in hooks] for name, module in base.named_modules()},
        "attributes": {
            name: sorted(set(vars(module)) - _CHECKPOINTING) for name, module in base.named_modules()
        },
        "checkpointing": {
            name: vars(module).get("gradient_checkpointing", False) for name, module in base.named_modules()
        },
        "trainable": {name: parameter.requires_grad for name, parameter in base.named_parameters()},
    }


@pytest.mark.parametrize("checkpoints", [0, 1, 2])
def test_unload_gives_the_base_back_as_it_was_lent(
    model_type: str, config: ShadowConfig, checkpoints: int
) -> None:
    """Catches a flag, hook, config field or weight of the base that training, generating or checkpointing
    left changed.
    """
    base, ids = tiny_model(model_type), token_ids(1, 8)
    for i, parameter in enumerate(base.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    arch.blocks_of(base)[1].train()
    before, weights = facts(base), copy.deepcopy(base.state_dict())
    model = perturb(attached(base, config)).train()
    for _ in range(checkpoints):
        recompute_activations(model)
    loss_and_gradients(model, ids, ids)
    model.eval().generate(ids, max_new_tokens=2, do_sample=False)
    assert model.unload() is base
    assert facts(base) == before
    assert list(base.state_dict()) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())


def test_what_a_base_learned_while_lent_is_forgotten(base, ids):
    """Catches hooks and settings that outlive unload(): output capturing, attention code, training mode."""
    before = copy.deepcopy(base.config.to_dict())
    model = attach(base)
    model(ids, output_hidden_states=True)
    model.set_attn_implementation("eager")
    model.train()
    assert model.unload() is base
    assert base.config.to_dict() == before
    assert base.config._attn_implementation == "sdpa"
    assert not any(
        module._forward_hooks or module._forward_pre_hooks or module.training for module in base.modules()
    )
    assert len(base(ids, output_hidden_states=True).hidden_states) == 5
