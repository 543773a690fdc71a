"""Views follow the module they are of, whatever is done to it."""

import copy
import pickle

import pytest
import torch
from accelerate import dispatch_model

from shadowpeft import arch


@pytest.mark.parametrize("how", ["dispatched", "compiled"])
def test_a_decoder_with_a_forward_of_its_own_is_still_shadowed(model, base, ids, how):
    """Catches a shadow that is skipped without a word: accelerate and torch.compile bind these to the module
    itself.
    """
    want = model(ids).logits
    if how == "dispatched":
        dispatch_model(base, {"": "cpu"}, force_hooks=True, main_device="cpu")
    else:
        arch.decoder_of(base).compile(backend="eager")
    assert torch.equal(model(ids).logits, want)
    assert not torch.allclose(base(ids).logits, want, atol=1e-2)


def test_copies_and_pickles_compute_the_same_alone(model, ids):
    """Catches a copy whose view still runs the original's blocks."""
    want = model(ids).logits
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(ids).logits, want)
        with torch.no_grad():
            other.base.model.layers[0].mlp.down_proj.weight.zero_()
        assert not torch.allclose(other(ids).logits, want)
        assert torch.equal(model(ids).logits, want)
