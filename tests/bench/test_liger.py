"""LoRA under liger-kernel's patches: on the measured base alone, and off it again."""

import pytest
import torch
from helpers.benches import spec
from helpers.families import tiny_model
from transformers.models.qwen3 import modeling_qwen3

from shadowpeft.bench import liger, methods
from shadowpeft.bench.settings import TrainBench
from shadowpeft.bench.snapshot import BaseSnapshot
from shadowpeft.errors import UserError

pytest.importorskip("liger_kernel")
SHARED = ("apply_rotary_pos_emb", "Qwen3RMSNorm", "Qwen3MLP")


def shared() -> list[object]:
    return [getattr(modeling_qwen3, name) for name in SHARED]


def test_the_patches_are_on_one_base_and_come_off(base):
    """Catches patches on classes that the next method's base is built from, and methods left on layers."""
    stock, snapshot, ids = shared(), BaseSnapshot(base), torch.arange(6)[None]
    with torch.no_grad():
        before = base(ids).logits
    methods.apply(spec("lora-liger"), base, TrainBench())
    block = base.model.layers[0]
    assert "LigerSwiGLUMLP" in block.mlp.forward.__qualname__
    assert "LigerRMSNorm" in block.input_layernorm.forward.__qualname__
    assert block.mlp.gate_proj.lora_A
    assert shared() == stock
    changes = snapshot.changes()
    snapshot.restore()
    assert not any(
        "liger" in str(value).lower() for module in base.modules() for value in vars(module).values()
    )
    with torch.no_grad():
        assert torch.equal(base(ids).logits, before)
    snapshot.reapply(changes)
    assert "LigerSwiGLUMLP" in block.mlp.forward.__qualname__


def test_the_rotation_is_replaced_around_a_forward_pass_alone(base):
    stock = shared()
    with liger.patch(base)():
        assert "liger" in modeling_qwen3.apply_rotary_pos_emb.__module__
    assert shared() == stock


def test_another_model_is_refused():
    with pytest.raises(UserError, match="lora-liger is measured on Qwen3, got LlamaForCausalLM"):
        liger.patch(tiny_model("llama"))
