"""The Trainer's settings, and gradient checkpointing, which must not change a gradient."""

import pytest
import torch
from helpers.families import (
    WIDTH,
    language_batch,
    token_ids,
)
from helpers.steps import VARIANTS, build, step
from torch import Tensor

from shadowpeft.arch import versions
from shadowpeft.train import run as training
from shadowpeft.train.arguments import recompute_activations
from shadowpeft.train.config import TrainConfig

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def test_bf16_without_a_gpu_takes_the_cpu(monkeypatch, tmp_path):
    """Catches transformers' advice to set use_cpu, which is no setting of ours."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    config = TrainConfig(model="m", data="d", output=str(tmp_path), bf16=True)
    assert training._training_arguments(config).use_cpu


CHECKPOINTED = [(name, variant) for name in ("llama", "qwen3", "gemma3_text") for variant in VARIANTS] + [
    ("gptj", "normed"),  # whose frame travels in a context variable, gone by the time of the backward pass
    ("gpt2", "paper"),  # which drops embeddings and residuals, too
]


@pytest.mark.parametrize(("model_type", "variant"), CHECKPOINTED)
def test_checkpointed_gradients_are_the_same_bits(model_type, variant):
    """Catches recomputing with another dropout mask or another shadow state.

    Base, shadow and boundaries all drop values here.
    """
    drops = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "gptj": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    }
    chances = dict.fromkeys(drops.get(model_type, ("attention_dropout",)), 0.1)
    model = build(model_type, chances, variant=variant, dropout=0.2).train()
    batch = language_batch()
    loss, expected = step(model, batch)
    assert not torch.equal(loss, step(model, batch, seed=4)[0]), "nothing is dropped"
    recompute_activations(model)
    loss_again, found = step(model, batch)
    assert torch.equal(loss_again, loss)
    assert (
        found.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    )
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_keeps_three_tensors_a_block(variant):
    """Catches boundaries that keep their insides: one block more costs its input, what the block before
    returned, and the state."""
    ids = token_ids(2, 16)

    def kept(blocks: int) -> int:
        model = build("llama", {"num_hidden_layers": blocks}, variant=variant).train()
        recompute_activations(model)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}
        alive = []

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                alive.append(tensor)
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(ids, labels=ids)
        return sum(storages.values())

    assert (kept(6) - kept(4)) / 2 == 3 * ids.numel() * WIDTH * 4


def test_checkpointing_is_off_again_when_it_is_switched_off():
    """Catches a switch that the boundaries do not follow back."""
    model = build("llama").train()
    recompute_activations(model)
    assert model.adapters["default"].gradient_checkpointing
    versions.keep_activations(model)
    assert not model.adapters["default"].gradient_checkpointing
