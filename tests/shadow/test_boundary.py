"""The weights of a boundary: how they start, and the gains that scale a correction."""

import copy
import math
from typing import Any

import pytest
import torch
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from torch import Tensor, nn
from torch.nn.utils import parametrize

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


class Doubled(nn.Module):
    """Of a weight: twice what is kept."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Wrapped(nn.Module):
    """A layer in another's place that has its weight and bias under properties, as PEFT's layers do."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer

    @property
    def weight(self) -> Tensor:
        return 3 * self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base_layer.bias


def _parametrized(part: nn.Module, name: str) -> None:
    parametrize.register_parametrization(part.get_submodule(name), "weight", Doubled())


def _wrapped(part: nn.Module, name: str) -> None:
    setattr(part, name, Wrapped(part.get_submodule(name)))


def _another_layer(part: nn.Module, name: str) -> None:
    layer = part.get_submodule(name)
    setattr(part, name, nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None))


def _another_weight(part: nn.Module, name: str) -> None:
    layer = part.get_submodule(name)
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _another_type(part: nn.Module, name: str) -> None:
    part.to(torch.float64)


@pytest.mark.parametrize("variant", ["normed", "peft"])
@pytest.mark.parametrize("change", [_parametrized, _wrapped, _another_layer, _another_weight, _another_type])
def test_a_boundary_reads_what_its_layers_say_that_they_have(change: Any, variant: str) -> None:
    """Catches a weight that is kept from an earlier pass, and one that is read past the layer which computes
    it.
    """
    model = perturb(attached(tiny_model("llama"), ShadowConfig(variant=variant)))
    injection, update = model.adapter.injections[1], model.adapter.updates[0]
    first = model(token_ids(2, 7)).logits
    before = [injection.weights().up_DR, update.weights(None).gate_out_DU]
    change(injection, "up")
    change(update, "gate_out")
    read = injection.weights(), update.weights(None)
    assert torch.equal(read[0].up_DR, injection.up.weight)
    assert torch.equal(read[0].down_RD, injection.down.weight)
    assert torch.equal(read[1].gate_out_DU, update.gate_out.weight)
    assert read[1].gate_out_D is update.gate_out.bias
    changed = [read[0].up_DR, read[1].gate_out_DU]
    if change is _another_type:
        assert all(weight.dtype == torch.float64 for weight in changed)
        return
    assert not any(torch.equal(*pair) for pair in zip(before, changed, strict=True))
    assert not torch.allclose(model(token_ids(2, 7)).logits, first, atol=1e-4)


@torch.no_grad()
def test_hooks_on_boundary_modules_run_and_what_they_return_counts() -> None:
    """Catches a boundary that is crossed past the calls of its modules, in which FSDP gathers the weights."""
    model, ids, calls = perturb(attached(tiny_model("llama"))), token_ids(2, 7), []
    want = model(ids).logits
    parts = [*model.adapter.injections, *model.adapter.updates]
    for part in parts:
        part.register_forward_pre_hook(lambda module, _: calls.append(module))
    assert torch.equal(model(ids).logits, want)
    assert {*map(id, calls)} == {*map(id, parts)}
    assert len(calls) == len(parts)
    model.adapter.injections[0].register_forward_hook(lambda _, __, crossed: (crossed[0] + 1, crossed[1]))
    assert not torch.allclose(model(ids).logits, want, atol=1e-3)
