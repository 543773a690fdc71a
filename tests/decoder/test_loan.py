"""A base is given back as it was lent, whatever was done to it in between."""

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids
from helpers.family_cases import loss_and_gradients
from transformers import PreTrainedModel

from shadowpeft import ShadowConfig, UserError, arch, attach
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


def trainable(base: PreTrainedModel) -> set[str]:
    return {name for name, weight in base.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("first", [0, 1])
def test_a_base_of_two_holders_is_frozen_until_both_gave_it_back(base, ids, first):
    """Catches a base that trains inside the model that still holds it, and one that stays frozen for good."""
    base.model.norm.weight.requires_grad_(False)
    before = trainable(base)
    models = [attach(base), attach(base)]
    models.pop(first).unload()
    assert trainable(base) == set()
    models[0].train()(ids, labels=ids).loss.backward()
    assert all(weight.grad is None for weight in base.parameters())
    models[0].unload()
    assert trainable(base) == before != set()
    assert not base.training


def test_two_holders_do_not_run_in_each_other_s_mode(base, ids):
    """Catches dropout of the base in answers of one model because another one trains."""
    one, two = attach(base), attach(base)
    one.train()
    with pytest.raises(UserError, match=r"put it into training mode: call eval\(\) on this model"):
        two(ids)
    two.eval()
    two(ids)
    with pytest.raises(UserError, match=r"put it into evaluation mode: call train\(\)"):
        one(ids, labels=ids)
    two.unload()
    one(ids, labels=ids)
    base.train()
    one.eval()
    base.train()
    one(ids)  # Alone, whatever the user chose for the base.


def test_a_holder_that_was_lost_does_not_hold(base):
    """Catches a base that stays frozen for good after a model was lost and made again, as in notebooks."""
    before = trainable(base)
    model = attach(base)
    del model
    model = attach(base)
    model = attach(base)
    assert model.unload() is base
    assert trainable(base) == before


def test_weights_of_the_base_that_train_beside_one_model_are_not_frozen_by_another(base):
    one = attach(base)
    base.lm_head.weight.requires_grad_(True)
    with pytest.raises(UserError, match=r"another model holds this base and trains its weight"):
        attach(base)
    assert base.lm_head.weight.requires_grad
    one.unload()
    attach(base)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_holds_the_copy_of_the_base(base, way):
    """Catches a copy that gives its base back frozen, or ends the loan of the original."""
    before = trainable(base)
    model = attach(base)
    other = way(model)
    second = attach(other.base)
    assert trainable(other.unload()) == set()
    assert trainable(second.unload()) == before
    assert trainable(base) == set()
    assert trainable(model.unload()) == before


def test_a_base_that_cannot_be_held_stays_as_it_was(base, monkeypatch):
    """Catches a base frozen by a model that was never made."""
    before = trainable(base)
    monkeypatch.setattr("shadowpeft.model.shadowed.WrappedBlocks", None)
    with pytest.raises(TypeError):
        attach(base)
    assert trainable(base) == before
