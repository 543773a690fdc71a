"""Where a pretrained shadow starts: fresh, or from blocks of the base."""

import pytest
import torch
from helpers.families import BLOCKS, TINY, attached, tiny_config, tiny_model, token_ids

from shadowpeft import ConfigError, ShadowConfig, UnsupportedModelError, arch
from shadowpeft.pretrain.start import fresh, from_base_blocks
from shadowpeft.shadow import Shadow


def is_as_its_shadow(family: arch.Family) -> bool:
    """Whether none of the blocks is a mixture of experts or keeps a recurrent state beside its shadow."""
    return not (family.dense or family.plain) and family.recurs == family.shadow_recurs


def say(shadow: Shadow, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return shadow.eval()(ids, None, None, None, None)


@torch.no_grad()
def read_out(base, s_BTD: torch.Tensor) -> torch.Tensor:
    return arch.logits(base, s_BTD)


@pytest.mark.parametrize("model_type", list(TINY))
def test_copied_blocks_compute_what_the_base_computes(model_type):
    """Catches weights copied to another place: a shadow of all the base's blocks, detached, is the base."""
    base, ids = tiny_model(model_type), token_ids(2, 9)
    if not is_as_its_shadow(arch.FAMILIES[model_type]):
        with pytest.raises(UnsupportedModelError, match=r"cannot be copied.*dense and attend"):
            from_base_blocks(base, range(BLOCKS))
        return
    whole = from_base_blocks(base, range(BLOCKS))
    want = base(ids).logits.detach()
    assert torch.allclose(read_out(base, say(whole, ids)), want, atol=1e-5)
    first = from_base_blocks(base, [0])
    with torch.no_grad():
        for name, tensor in first.backbone.state_dict().items():
            assert torch.equal(tensor, base.get_submodule(first.family.decoder).state_dict()[name]), name
    assert not torch.allclose(read_out(base, say(first, ids)), want, atol=1e-2)


def test_blocks_run_in_the_order_named():
    """Catches blocks taken from the front whatever is named: swapping the base's own blocks is the slow
    way."""
    base, ids = tiny_model("llama"), token_ids(2, 9)
    got = read_out(base, say(from_base_blocks(base, [3, 1]), ids))
    base.model.layers = torch.nn.ModuleList([base.model.layers[3], base.model.layers[1]])
    assert torch.equal(got, base(ids).logits)


@pytest.mark.parametrize(
    ("model_type", "field"), [("gemma4_text", "hidden_size_per_layer_input"), ("glm_moe_dsa", "index_topk")]
)
def test_a_block_that_reads_otherwise_than_a_shadows_is_not_copied(model_type, field):
    """Catches a copy of equal shapes that computes something else."""
    changes = {"enable_moe_block": False} if model_type == "gemma4_text" else {}
    base = tiny_model(model_type, config=tiny_config(model_type, **changes))
    with pytest.raises(
        UnsupportedModelError, match=f"cannot be copied: its {field} is not that of the shadow"
    ):
        from_base_blocks(base, [0])


def test_blocks_that_cannot_be_copied():
    """Catches a sliding block that would run as a full one, with another table of rotations."""
    base = tiny_model("gemma3_text")
    with pytest.raises(
        ConfigError, match=r"block 1 of the base attends by full_attention.*one of the blocks 0, 2$"
    ):
        from_base_blocks(base, [1])
    for blocks in ([], [BLOCKS], [-1]):
        with pytest.raises(ConfigError, match=r"at least one of the base's 4 blocks, 0 to 3"):
            from_base_blocks(base, blocks)
    with pytest.raises(ConfigError, match=r"at most as many blocks as the base, 4"):
        from_base_blocks(base, [0] * 5)


def test_a_fresh_start_is_the_one_that_attach_makes():
    """Catches two ways of building the same shadow that drift apart."""
    base = tiny_model("qwen3")
    torch.manual_seed(0)
    ours = fresh(base, ShadowConfig()).state_dict()
    theirs = attached(base, ShadowConfig()).adapters["default"].shadow.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
