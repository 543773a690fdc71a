"""The weights of a boundary: how they start, and the gains that scale a correction."""

import copy
import math

import pytest
import torch
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel


@pytest.mark.parametrize(
    ("variant", "gate", "deviation"), [("normed", 1 / (1 + math.exp(1)), 96**-0.5), ("paper", 0.5, 0.02)]
)
def test_a_fresh_boundary_starts_as_documented(variant: str, gate: float, deviation: float) -> None:
    """Catches a gate that forgets the first state at once, or one that is shut, and a W_down at another
    variant's scale.
    """
    base = tiny_model("llama", config=tiny_config("llama", hidden_size=96))
    adapter = attached(base, ShadowConfig(variant=variant, r=32)).adapters["default"]
    assert (adapter.norm is None) == (variant == "normed")
    for update in adapter.updates:
        weights = update.weights(None)
        x = torch.nn.functional.rms_norm(
            torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), (96,)
        )
        hidden = torch.nn.functional.silu(x @ weights.gate_in_UD.T)
        opened = (hidden @ weights.gate_out_DU.T - weights.gate_shift).sigmoid()
        assert opened.mean().item() == pytest.approx(gate, rel=0.1)
    for injection in adapter.injections:
        assert injection.down.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert not injection.up.weight.any()


def test_where_corrections_are_spread_as_a_block_writes(tmp_path) -> None:
    """Catches gains where no norm has any, gains that are lost by a file, a copy or another type, and a
    setting that does nothing.
    """
    base, ids = tiny_model("gemma3_text"), token_ids(2, 7)
    model, even = (perturb(attached(base, ShadowConfig(output_gains=given))) for given in (None, False))
    spread = model(ids).logits
    model.save_pretrained(tmp_path)
    assert not torch.allclose(even(ids).logits, spread, atol=1e-3)
    again = ShadowedModel.from_pretrained(base, tmp_path)
    assert again.adapters["default"].settings.output_gains
    assert torch.equal(again(ids).logits, spread)
    assert torch.equal(copy.deepcopy(again)(ids).logits, spread)
    gains = [injection.gains_D for injection in again.adapters["default"].injections]
    rounded = ShadowedModel.from_pretrained(base.to(torch.bfloat16), tmp_path).adapters["default"]
    for exact_D, near_D in zip(gains, (injection.gains_D for injection in rounded.injections), strict=True):
        torch.testing.assert_close(near_D.float(), exact_D, rtol=1e-2, atol=0)
    assert not any("gains" in name for name in again.adapters["default"].state_dict()), (
        "they follow from the base"
    )
    with pytest.raises(
        ConfigError,
        match="output_gains needs norms behind a block's layers, and Llama has none; leave it out",
    ):
        attached(tiny_model("llama"), ShadowConfig(output_gains=True))
    with pytest.raises(
        ConfigError, match="output_gains belongs to the variant 'normed', got it with 'peft'; leave it out"
    ):
        ShadowConfig(variant="peft", output_gains=True)
