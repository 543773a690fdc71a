"""Views follow the module they are of, whatever is done to it."""

import copy
import pickle

import pytest
import torch
from accelerate import dispatch_model
from helpers.families import attached, perturb, tiny_model

from shadowpeft import ShadowConfig, arch


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


@torch.no_grad()
def test_a_shadow_runs_the_blocks_that_it_has_now_with_their_hooks(ids) -> None:
    """Catches a list of blocks that is kept, one without a block that stands in it twice, and blocks that are
    not called.
    """
    model, runs = perturb(attached(tiny_model("llama"), ShadowConfig(shadow_layers=3))), []
    shadow = model.adapter.shadow

    def state() -> torch.Tensor:
        return shadow(ids, None, None, None, None)

    first, blocks = state(), shadow.backbone.layers
    handles = [
        block.register_forward_hook(lambda _, __, h, i=i: runs.append(i)) for i, block in enumerate(blocks)
    ]
    assert torch.equal(state(), first)
    assert runs == [0, 1, 2]
    shadow.backbone.layers = torch.nn.ModuleList([blocks[1], blocks[1], blocks[0]])
    assert not torch.allclose(state(), first, atol=1e-3)
    assert runs[3:] == [1, 1, 0]
    for handle in handles:
        handle.remove()
