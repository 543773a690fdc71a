"""Offloaded weights: what reads them without calling their module brings them first."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from helpers.families import LABELS, attached, perturb, tiny_model, token_ids
from safetensors.torch import load_file

from shadowpeft import CheckpointError, ShadowConfig, ShadowedModel, UserError


def by_map(model: ShadowedModel, folder: Path) -> None:
    """Keep two fifths in memory, as an automatic device map does where memory is short."""
    size = sum(weight.nbytes for weight in model.parameters())
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": int(0.4 * size), "disk": 10**9},
        no_split_module_classes=list(model._no_split_modules),
    )
    dispatch_model(model, places, main_device="cpu", offload_dir=folder / "offload", force_hooks=True)


OFFLOADS: dict[str, Callable[[ShadowedModel, Path], object]] = {
    "cpu": lambda model, _: cpu_offload(model, torch.device("cpu")),
    "disk": lambda model, folder: disk_offload(model, folder / "offload", torch.device("cpu")),
    "map": by_map,
}


@pytest.fixture(params=["normed", "paper", "peft"])
def whole(request) -> ShadowedModel:
    return perturb(attached(tiny_model("gemma2"), ShadowConfig(variant=request.param, alpha=0.5))).eval()


@torch.no_grad()
@pytest.mark.parametrize("how", OFFLOADS)
def test_an_offloaded_model_computes_the_same(whole, how, tmp_path, ids):
    """Catches a boundary that reads its weights past the hooks: from memory that nobody wrote to."""
    want = whole(ids, output_shadow_logits=True)
    tokens = whole.generate(ids, max_new_tokens=3, do_sample=False)
    OFFLOADS[how](whole, tmp_path)
    found = whole(ids, output_shadow_logits=True)
    assert torch.equal(found.logits, want.logits)
    assert torch.equal(found.shadow_logits, want.shadow_logits)
    assert torch.equal(whole.generate(ids, max_new_tokens=3, do_sample=False), tokens)


@torch.no_grad()
@pytest.mark.parametrize("what", ["base", "whole"])
def test_the_kernels_read_an_offloaded_norm(model, what, ids):
    """Catches a kernel that is handed the address of a weight on the meta device."""
    model.set_impl("triton")
    want = model(ids[:1, :4]).logits
    cpu_offload(model if what == "whole" else model.base, torch.device("cpu"))
    assert torch.equal(model(ids[:1, :4]).logits, want)


@torch.no_grad()
def test_an_offloaded_model_is_saved_and_detached(whole, tmp_path, ids):
    want = whole.detached()(ids).logits
    whole.save_pretrained(tmp_path / "before")
    disk_offload(whole, tmp_path / "offload", torch.device("cpu"))
    whole.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "shadow.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    torch.testing.assert_close(whole.detached()(ids).logits, want)
    assert whole.adapter.injections[0].up.weight.is_meta
    with pytest.raises(CheckpointError, match="on the meta device"):
        whole.save_pretrained(tmp_path / "after", state_dict=whole.state_dict())


@torch.no_grad()
def test_an_offloaded_classifier_is_detached(ids):
    model = perturb(attached(tiny_model("llama", "sequence-classification"))).eval()
    want = model.detached()(ids).logits
    cpu_offload(model, torch.device("cpu"))
    assert want.shape == (2, LABELS)
    torch.testing.assert_close(model.detached()(ids).logits, want)


def test_an_offloaded_adapter_is_not_trained_in_vain(model, ids):
    """Catches gradients that go to copies: a run that ends without an error and has learnt nothing."""
    cpu_offload(model.base, torch.device("cpu"))
    model.train()(ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for weight in model.adapter.parameters())
    cpu_offload(model.adapters, torch.device("cpu"))
    with pytest.raises(UserError, match="is offloaded and would never learn"):
        model(ids, labels=ids)
    model.eval()(ids, labels=ids)


def test_weights_that_nobody_knows_are_not_read(model):
    """Catches answers from a model whose weights were never loaded."""
    model.adapters.to("meta")
    embeds = model.base.get_input_embeddings()(token_ids(1, 3))
    with pytest.raises(UserError, match="on the meta device, which holds no values"):
        model.adapter.enter(2, embeds, embeds, torch.nn.Identity())
