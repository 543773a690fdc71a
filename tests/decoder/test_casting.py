"""A shadow in a lower type computes its positions as transformers does."""

import pytest
import torch
import torch.nn.functional as F
from helpers.families import TINY, tiny_model
from torch import nn

from shadowpeft import ShadowConfig, attach
from shadowpeft.decoder.casting import cast, follow_inputs


def unsaved(module: nn.Module) -> dict[str, torch.Tensor]:
    saved = module.state_dict()
    return {name: buffer for name, buffer in module.named_buffers() if name not in saved}


def loaded(folder, model) -> nn.Module:
    """Return the model as transformers reads it from a folder in bfloat16."""
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder, dtype=torch.bfloat16)


@pytest.mark.parametrize("model_type", sorted(TINY))
def test_a_model_is_cast_as_transformers_loads_it(model_type, tmp_path):
    """Catches rotary frequencies, or another buffer that is computed and not saved, in a lower type."""
    model = tiny_model(model_type)
    stock = loaded(tmp_path, model)
    cast(model, torch.device("cpu"), torch.bfloat16, stock=model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    ours, theirs = unsaved(model), unsaved(stock)
    assert ours.keys() == theirs.keys()
    # Gemma's scale of its embeddings is rounded when it is used, so it may be wider before.
    assert all(torch.equal(buffer.to(theirs[name].dtype), theirs[name]) for name, buffer in ours.items())
    assert all(ours[name].dtype == torch.float32 for name in theirs if theirs[name].dtype == torch.float32)


@pytest.mark.parametrize("explicit", [False, True])
def test_shadows_keep_their_frequencies_attached_and_detached(explicit, tmp_path):
    """Catches states of an explicit shadow that are wrong beyond the first few positions."""
    base = loaded(tmp_path / "base", tiny_model("llama"))
    shadow = loaded(tmp_path / "shadow", tiny_model("llama")) if explicit else None
    model = attach(base, ShadowConfig(), shadow=shadow)
    for part in (model.adapter, model.detached()):
        kept = {name: buffer.dtype for name, buffer in unsaved(part).items() if "inv_freq" in name}
        assert kept
        assert set(kept.values()) == {torch.float32}


def test_a_layer_that_is_a_stock_one_by_its_parent_alone_computes_what_it_did():
    """Catches a subclass of a stock layer that is taken for its parent: its own forward pass is lost."""

    class OnePlus(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)

    layer, x = OnePlus(8), torch.randn(3, 8)
    want = layer(x)
    follow_inputs(layer)
    assert torch.equal(layer(x), want)
    low = layer(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), want, rtol=0.02, atol=0.02)
