"""Configurations of shadows derived from their base's."""

import pytest
import torch
from helpers.families import BLOCKS, TINY, WINDOW, attached, tiny_config, tiny_model, token_ids

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, arch, attach


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_which_shadows_are_not_as_their_base(model_type: str) -> None:
    """Catches shadow experts that no token chose, and so no gradient reached; a shadow with a recurrent
    state; a row that does not say so.
    """
    family, base = arch.FAMILIES[model_type], tiny_model(model_type)
    config = arch.shadow_model_config(base, ShadowConfig().resolved())
    experts = [name for name, _ in base.named_parameters() if "experts" in name]
    assert bool(experts) == bool(family.dense)
    # A mixture that has no dense blocks gets as many experts as each token takes.
    if not {"num_experts", "num_local_experts", "n_routed_experts"} & {field for field, _ in family.dense}:
        shadow = arch.build(config, "causal-lm")
        assert not any("experts" in name for name, _ in shadow.named_parameters())
    recur = {"linear_attention", "conv", "hybrid"}
    assert family.recurs == any(kind in recur for kind in getattr(base.config, "layer_types", None) or [])
    assert family.shadow_recurs == any(kind in recur for kind in getattr(config, "layer_types", None) or [])


def test_heads_that_do_not_divide_the_width_are_refused():
    base = tiny_model("gpt2")
    with pytest.raises(ConfigError, match="divide the base's width"):
        attach(base, ShadowConfig(shadow_attention_heads=3))
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_which_blocks_need_no_mask():
    """Catches a window that is forgotten or remembered by a block without one, and code that masks
    nothing.
    """

    def needs_no_mask(model_type, index, tokens, attention="sdpa", **changes) -> bool:
        config = tiny_config(model_type, **changes)
        config._attn_implementation = attention
        return arch.needs_no_mask(config, index, tokens)

    assert needs_no_mask("llama", 0, 60)
    assert not needs_no_mask("llama", 0, 60, attention="eager")
    assert not needs_no_mask("bloom", 0, 3)
    assert needs_no_mask("mistral", 0, WINDOW)
    assert not needs_no_mask("mistral", 0, WINDOW + 1)
    sliding, full = 0, 1
    assert needs_no_mask("gemma3_text", full, 60)
    assert not needs_no_mask("gemma3_text", sliding, 60)
    assert not needs_no_mask("gemma3_text", full, 60, use_bidirectional_attention=True)
    assert not needs_no_mask("gemma4_text", full, 60, use_bidirectional_attention="all")
    assert needs_no_mask("gemma4_text", full, 60, use_bidirectional_attention="vision")
    assert not needs_no_mask("llama", 0, 60, is_causal=False)


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_limits_and_depth_are_read_off_every_family(model_type):
    """Catches a field of the table that the family's configuration does not have."""
    config = tiny_config(model_type)
    assert arch.context_of(config) == (None if model_type == "bloom" else 64)
    assert (arch.rope_switch_of(config) is None) == (model_type != "phi3")
    assert arch.depth_of(config) == BLOCKS
    blocks = arch.FAMILIES[model_type].blocks_a_layer
    arch.make_shadow(config, 2)
    assert arch.layers_of(config) == 2
    assert arch.depth_of(config) == 2 * blocks
    assert len(arch.blocks_of(arch.build(config, "causal-lm"))) == 2 * blocks


def test_the_rotary_factors_change_at_the_length_of_the_configuration():
    assert arch.rope_switch_of(tiny_config("phi3", original_max_position_embeddings=12)) == 12


def test_a_depth_beyond_the_listed_blocks_is_refused():
    with pytest.raises(ConfigError, match="shadow_layers must be at most the base's 4, got 5"):
        arch.make_shadow(tiny_config("gemma3_text"), 5)


def test_a_mixture_may_leave_its_head_width_to_its_model(tmp_path):
    """Catches a field that is read although the stock model is built without it."""
    config = tiny_config("qwen3_moe")
    del config.head_dim
    model, ids = attached(tiny_model("qwen3_moe", config=config)), token_ids(1, 5)
    assert torch.equal(model(ids).logits, model.base(ids).logits)
    model.save_pretrained(tmp_path)
    other = ShadowedModel.from_pretrained(model.unload(), tmp_path)
    other.add_adapter("narrow", ShadowConfig(shadow_attention_heads=2))
    assert other(ids).logits.isfinite().all()
    with pytest.raises(ConfigError, match="must divide the base's width"):
        other.add_adapter("odd", ShadowConfig(shadow_attention_heads=3, shadow_key_value_heads=1))
