"""An adapter crosses each boundary as written, and knows its type."""

import pytest
import torch
from helpers.explicit_shadows import explicit
from helpers.families import attached, perturb, tiny_config, tiny_model, token_ids
from helpers.layouts import inputs_of
from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel, arch, attach
from shadowpeft.shadow.adapter import Adapter


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def written_out(base: PreTrainedModel, adapter: Adapter, ids: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    """Compute each block's input from the outputs of the blocks before, as docs/concepts/method.md says."""
    family, settings = arch.family_of(base), adapter.settings
    state, inputs = adapter.shadow(ids, None, None, None, None), [outputs[0]]
    if settings.unit_state:
        state = state / (state.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for i, block in enumerate([*arch.blocks_of(base)][1:]):
        h = outputs[i + 1]
        x = arch.input_norm_of(block, family)(h)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        if i > 0:
            update = adapter.updates[i - 1]
            target = silu(x @ update.transform_in.weight.T) @ update.transform_out.weight.T
            gate = 1 / (1 + (1 - silu(x @ update.gate_in.weight.T) @ update.gate_out.weight.T).exp())
            state = (1 - gate) * state + gate * target
        injection = adapter.injections[i]
        low = silu((x - state) @ injection.down.weight.T)
        gains = torch.ones(h.shape[-1])
        if settings.output_gains:
            behind = (block.post_attention_layernorm.weight, block.post_feedforward_layernorm.weight)
            offset = base.config.model_type.startswith("gemma")
            gains = ((behind[0] + offset) ** 2 + (behind[1] + offset) ** 2).sqrt()
            gains = gains / gains.mean()
        inputs.append(
            h + settings.alpha * h.abs().mean(-1, keepdim=True) * gains * (low @ injection.up.weight.T)
        )
    return inputs


@pytest.mark.parametrize(
    ("model_type", "unit_state"),
    [("gemma3_text", False), ("gemma3_text", True), ("falcon", False), ("olmo2", True)],
)
@torch.no_grad()
def test_every_boundary_is_crossed_as_written(model_type: str, unit_state: bool) -> None:
    """Catches the norm or the weights of another block, a stale state, a correction before the update, alpha,
    shift or size left out.
    """
    base = tiny_model(model_type, dtype=torch.float64)
    config, ids = ShadowConfig(variant="normed", alpha=0.7, unit_state=unit_state), token_ids(2, 7)
    model = perturb(attached(base, config))
    blocks, entered, put_out = [*arch.blocks_of(base)], [], []
    inputs_of(blocks, entered)
    for block in blocks:
        block.register_forward_hook(
            lambda module, args, out: put_out.append((out[0] if isinstance(out, tuple) else out).clone())
        )
    model(ids, use_cache=False)
    expected = written_out(base, model.adapters["default"], ids, [entered[0], *put_out[:-1]])
    for h, want in zip(entered, expected, strict=True):
        torch.testing.assert_close(h, want, rtol=1e-10, atol=1e-12)
    assert all((h - out).abs().mean() > 1e-3 for h, out in zip(entered[1:], put_out, strict=False)), (
        "nothing was corrected"
    )
    assert model.adapters["default"].settings.output_gains == (model_type != "falcon")


def test_a_pretrained_shadow_is_brought_to_the_size_of_what_it_is_compared_with(tmp_path) -> None:
    """Catches states of any size that drown the difference, a detached model that changes with them, and a
    setting that is not kept.
    """
    base, other, ids = tiny_model("llama"), tiny_model("llama", seed=1), token_ids(2, 7)
    with torch.no_grad():
        other.model.norm.weight.mul_(50)
        other.lm_head.weight.copy_(base.lm_head.weight)
    model = perturb(attached(base, ShadowConfig(), shadow=other))
    adapter = model.adapters["default"]
    assert adapter.settings.unit_state
    first = adapter.shadow(ids, None, None, None, None)
    assert first.square().mean(-1).sqrt().min() > 10
    torch.testing.assert_close(adapter.start(first).square().mean(-1), torch.ones(2, 7), rtol=1e-4, atol=0)
    with torch.no_grad():
        before, alone = model(ids).logits, model.detached()(ids).logits
        adapter.shadow.backbone.norm.weight.mul_(2)
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.detached()(ids).logits, 2 * alone, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = ShadowedModel.from_pretrained(model.unload(), tmp_path)
    assert again.adapters["default"].settings.unit_state
    torch.testing.assert_close(again(ids).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("base_type", "adapter_type"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_a_frozen_backbone_keeps_the_bases_type(base_type: torch.dtype, adapter_type: torch.dtype) -> None:
    """Catches frozen weights that take twice the memory beside a base in bfloat16, or that a detour through
    the type of the trained ones rounds."""
    base = tiny_model("qwen3", dtype=base_type)
    other = tiny_model("qwen3", seed=7, config=tiny_config("qwen3", hidden_size=16))
    given = {name: weight.clone() for name, weight in arch.decoder_of(other).state_dict().items()}
    adapter = attach(base, ShadowConfig(train_backbone=False), other, dtype=adapter_type).adapter
    backbone = adapter.shadow.backbone.state_dict()
    assert {weight.dtype for weight in adapter.parameters() if weight.requires_grad} == {adapter_type}
    assert all(torch.equal(weight, given[name].to(base_type)) for name, weight in backbone.items())
    assert all(weight.dtype == base_type for weight in backbone.values())


def test_a_frozen_backbone_must_be_another_models(base) -> None:
    """Catches random weights that would stay random."""
    with pytest.raises(ConfigError, match="train_backbone false keeps the blocks of another model's decoder"):
        attach(base, ShadowConfig(train_backbone=False))
    assert all(weight.requires_grad for weight in base.parameters()), "a refused base stays as it was"


def test_choosing_an_adapter_leaves_its_backbone_frozen(ids) -> None:
    """Catches a switch of adapters that makes a frozen backbone train."""
    model = explicit("narrower", train_backbone=False)
    model.add_adapter("second")
    model.set_adapter("default")
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert "adapters.default.shadow.projection.weight" in trained
    assert not any(".backbone." in name for name in trained)


@pytest.mark.parametrize("variant", ["normed", "paper", "peft"])
@pytest.mark.parametrize("autocast", [False, True])
def test_trained_weights_may_have_another_type_than_the_base(base, ids, variant, autocast):
    """Catches operands of two types, with a caller's autocast and without."""
    model = attach(base.to(torch.bfloat16), ShadowConfig(variant=variant))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(ids, labels=ids)
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
