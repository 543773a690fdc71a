"""`base_model`: the last hidden state of the attached model, for losses that others compute."""

import pytest
import torch
from helpers.families import attached, perturb, tiny_model, token_ids

from shadowpeft import UserError, arch


@torch.no_grad()
def test_the_head_of_the_last_hidden_state_is_the_answer(model_type):
    """Catches the bare base's state, which trains nothing, and one before the final norm."""
    model, ids = perturb(attached(tiny_model(model_type))), token_ids(2, 9)
    state = model.base_model(ids, use_cache=False).last_hidden_state
    assert torch.equal(arch.logits(model.base, state), model(ids).logits)
    assert model.get_decoder().config is model.config
    with model.disabled():
        bare = model.base_model(ids, use_cache=False).last_hidden_state
    assert torch.equal(arch.logits(model.base, bare), model.base(ids).logits)
    assert not torch.equal(bare, state)


@torch.no_grad()
def test_its_cache_is_that_of_base_and_shadow(model, ids):
    """Catches a cache of the base alone, beside which the shadow would start anew."""
    whole = model.base_model(ids).last_hidden_state
    first = model.base_model(ids[:, :6], use_cache=True)
    rest = model.base_model(ids[:, 6:], past_key_values=first.past_key_values).last_hidden_state
    torch.testing.assert_close(rest, whole[:, 6:], rtol=1e-4, atol=1e-5)


def test_it_registers_no_weight(model):
    before = list(model.state_dict())
    assert model.base_model is not model
    assert list(model.state_dict()) == before


def test_its_gradients_are_the_models(base, ids):
    """Catches a state that is cut off from the adapter."""
    model = perturb(attached(base)).train()
    with pytest.warns(UserWarning, match="no part of the shadow's own loss"):
        model.base_model(ids).last_hidden_state.sum().backward()
    assert all(weight.grad is not None for weight in model.adapter.injections.parameters())


def test_it_refuses_and_returns_what_the_model_does(base, ids):
    """Catches arguments and settings that the model's own call refuses or applies, and this one drops."""
    model = attached(base)
    with pytest.raises(UserError, match="adapter_names is not supported"):
        model.base_model(ids, adapter_names=["default"])
    with pytest.raises(UserError, match="logits_to_keep is not supported: the whole last hidden state"):
        model.base_model(ids, logits_to_keep=1)
    with pytest.raises(UserError, match="did you mean 'output_hidden_states'"):
        model.base_model(ids, output_hidden_state=True)
    model.config.output_hidden_states = True
    assert len(model.base_model(ids).hidden_states) == model.config.num_hidden_layers + 1
    with model.disabled():
        assert model.base_model(ids).hidden_states is not None
    model.config.output_hidden_states = False
    base.resize_token_embeddings(base.config.vocab_size + 1)
    with pytest.raises(UserError, match="had 97 tokens when it was lent"):
        model.base_model(ids)
