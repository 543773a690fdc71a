"""Blocks below the first injection keep nothing for the backward pass, and the state reads them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.families import (
    BLOCKS,
    VOCAB,
    attached,
    language_batch,
    perturb,
    tiny_model,
    token_ids,
)
from helpers.steps import VARIANTS, build
from torch import Tensor
from transformers import PreTrainedModel

from shadowpeft import ShadowConfig, arch
from shadowpeft.train.arguments import recompute_activations

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


@contextmanager
def watching(base: PreTrainedModel) -> Iterator[tuple[Counter[int], dict[int, bool]]]:
    """Note how many bytes autograd keeps while each block runs, and whether its output wants a gradient."""
    kept: Counter[int] = Counter()
    wants: dict[int, bool] = {}
    running: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        if running:
            kept[running[-1]] += tensor.nbytes
        return tensor

    def leave(index: int, out: Any) -> None:
        running.pop()
        wants[index] = (out if isinstance(out, Tensor) else out[0]).requires_grad

    handles = []
    for index, block in enumerate(arch.blocks_of(base)):
        handles.append(block.register_forward_pre_hook(lambda *_, index=index: running.append(index)))
        handles.append(block.register_forward_hook(lambda *call, index=index: leave(index, call[-1])))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept, wants
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("prepared", ["plain", "inputs with gradient", "checkpointed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_below_the_first_injection_keep_nothing(variant, prepared):
    """Catches a graph that reaches below the injections, such as one that starts at the embeddings of a base
    prepared for checkpointing."""
    base = tiny_model("llama")
    if prepared != "plain":
        base.enable_input_require_grads()
    if prepared == "checkpointed":
        recompute_activations(base)
    model = perturb(attached(base, ShadowConfig(variant=variant, inject_from=2))).train()
    with watching(base) as (kept, wants):
        loss = model(**language_batch()).loss
    assert wants == {0: False, 1: False, 2: True, 3: True}
    if (
        prepared != "checkpointed"
    ):  # which notes each block's input, whatever it wants; the update keeps that anyway
        assert not kept[0]
        assert not kept[1]
        assert kept[2] == kept[3] > 0
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("inject_from", [2, BLOCKS - 1])
def test_the_state_reads_the_blocks_below_the_first_injection(variant, inject_from):
    """Holds `inject_from` to its meaning: an adapter of `inject_from=1` whose first injections add zero."""
    whole = build("llama", variant=variant, inject_from=1)
    with torch.no_grad():
        for injection in whole.adapters["default"].injections[: inject_from - 1]:
            injection.up.weight.zero_()
    state = whole.adapters["default"].state_dict()
    upper = attached(
        tiny_model("llama"),
        ShadowConfig(variant=variant, inject_from=inject_from, r=4, update_width=5, alpha=0.5),
    )
    wanted = {}
    for name in upper.adapters["default"].state_dict():
        parts = name.split(".")
        if parts[0] == "injections":
            parts[1] = str(int(parts[1]) + inject_from - 1)
        wanted[name] = state[".".join(parts)]
    upper.adapters["default"].load_state_dict(wanted)
    ids = token_ids(2, 9)
    assert torch.equal(upper(ids).logits, whole(ids).logits)
    with torch.no_grad():
        upper.adapters["default"].updates[0].transform_out.weight.zero_()
    assert not torch.equal(upper(ids).logits, whole(ids).logits)


def test_gradients_reach_embeddings_that_the_caller_gave():
    """Catches a prompt to be tuned whose gradient through the base is cut: both paths are compared with
    finite differences."""
    model = build("gpt2", inject_from=2).double()  # whose norms compute in float64
    embeds = model.get_input_embeddings()(token_ids(1, 6)).detach().requires_grad_(True)
    torch.manual_seed(1)
    direction, weights = torch.randn_like(embeds), torch.randn(2, 1, 6, VOCAB, dtype=torch.float64)

    def value(embeds: Tensor) -> Tensor:
        out = model(inputs_embeds=embeds, use_cache=False, output_shadow_logits=True)
        return (torch.stack([out.logits, out.shadow_logits]) * weights).sum()

    value(embeds).backward()
    with torch.no_grad():
        slope = (value(embeds + 1e-5 * direction) - value(embeds - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((embeds.grad * direction).sum(), slope, rtol=1e-6, atol=0)
