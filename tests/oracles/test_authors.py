"""Our variant `paper` against the authors' package: the same weights give the same outputs and gradients.

One named deviation: the authors update the shadow state after the last block too, where nobody reads it. We
have no weights there; theirs, asserted here, never get a gradient. Losses pass through transformers' own
float32, hence 1e-6 and not less.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import shadow_peft
import torch
from helpers.families import (
    BLOCKS,
    attached,
    classification_batch,
    copy_weights,
    gradient_errors,
    language_batch,
    perturb,
    relative_error,
    tiny_config,
    tiny_model,
    token_ids,
)
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from shadowpeft import ShadowConfig, ShadowedModel, arch
from shadowpeft.arch.versions import bridge_former_cache_name

OURS = ShadowConfig(
    variant="paper", r=4, update_width=5, alpha=0.3, dropout=0.0, shadow_loss_weight=0.2,
    shadow_intermediate_size=24, shadow_attention_heads=2, shadow_key_value_heads=1, shadow_head_dim=6,
)  # fmt: skip
THEIRS = shadow_peft.ShadowConfig(
    injection_hidden_size=4, gate_hidden_size=5, alpha=0.3, dropout=0.0, shadow_intermediate_size=24,
    shadow_num_attention_heads=2, shadow_num_key_value_heads=1, shadow_head_dim=6,
)  # fmt: skip
SIZES = (
    "shadow_intermediate_size",
    "shadow_attention_heads",
    "shadow_key_value_heads",
    "shadow_head_dim",
)
BOUND = 1e-6

# Our names and theirs, as the task wrapper lists them; the injections are stacked over depth there, and
# stored transposed.
NAMES = {
    r"shadow\.backbone\.(.+)": r"peft_model.shadow_model.\1",
    r"shadow\.projection\.weight": r"peft_model.shadow_hidden_projection.weight",
    r"updates\.(\d+)\.(transform|gate)_in\.weight": r"peft_model.shadow_update_model.update_\2s.\1.0.weight",
    r"updates\.(\d+)\.transform_out\.weight": r"peft_model.shadow_update_model.update_transforms.\1.3.weight",
    r"updates\.(\d+)\.gate_out\.weight": r"peft_model.shadow_update_model.update_gates.\1.2.weight",
    r"norm\.(weight|bias)": r"peft_model.shadow_update_model.hidden_norm.\1",
    r"score\.weight": r"classifier_head.weight",
    r"shadow_score\.weight": r"shadow_classifier_head.weight",
}
STACKED = r"injections\.(\d+)\.(down|up)\.weight"
LAST_UPDATE = {
    f"peft_model.shadow_update_model.update_{network}.{BLOCKS - 2}.{layer}.weight"
    for network, layers in (("transforms", (0, 3)), ("gates", (0, 2)))
    for layer in layers
}


def counterpart(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Find the authors' tensor, or the view of one, for one of ours."""
    if match := re.fullmatch(STACKED, name):
        return tensors[f"peft_model.shadow_injection_model.injection_{match[2]}s"][int(match[1])].T
    (found,) = (match.expand(theirs) for ours, theirs in NAMES.items() if (match := re.fullmatch(ours, name)))
    return tensors[found]


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Name every trainable tensor once, a classifier's head by the wrapper's name for it."""
    found = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad
    }
    return {
        name: parameter for name, parameter in found.items() if not name.startswith("peft_model.base_model.")
    }


def both(model_type: str, task: str = "causal-lm", narrow: bool = False) -> tuple[ShadowedModel, nn.Module]:
    """Build the same shadowed model twice, in float64, with every weight random; `narrow` takes an explicit
    shadow of half the width.
    """
    bases = [tiny_model(model_type, task, dtype=torch.float64) for _ in range(2)]
    config = tiny_config(model_type, hidden_size=16)
    explicit = [
        tiny_model(model_type, seed=3, dtype=torch.float64, config=config) if narrow else None
        for _ in range(2)
    ]
    # The authors ignore the sizes beside a model that has its own; ours are refused there.
    settings = replace(OURS, **dict.fromkeys(SIZES)) if narrow else OURS
    ours = perturb(attached(bases[0], settings, shadow=explicit[0]))
    if (
        explicit[1] is not None
    ):  # the authors leave it to their scripts to freeze the embeddings; ours are frozen
        explicit[1].get_input_embeddings().requires_grad_(False)
    wrap = {
        "causal-lm": shadow_peft.ShadowForCausalLM,
        "sequence-classification": shadow_peft.ShadowForSequenceClassification,
    }[task]
    theirs = (
        wrap(shadow_peft.get_shadow_model(bases[1], THEIRS, shadow_model=explicit[1]), shadow_loss_weight=0.2)
        .double()
        .eval()
    )
    bridge_former_cache_name(bases[1], theirs.peft_model.shadow_model)
    assert copy_weights(ours, trained(theirs), counterpart) == LAST_UPDATE
    return ours, theirs


def compare(ours: ShadowedModel, theirs: nn.Module, batch: dict[str, Any]) -> None:
    """Compare logits of both heads, the loss and every gradient on one batch; their dead weights must have
    none.
    """
    found, expected = ours(**batch, output_shadow_logits=True), theirs(**batch)
    assert relative_error(found.logits, expected.logits) < BOUND
    assert relative_error(found.shadow_logits, expected.shadow_logits) < BOUND
    assert relative_error(found.loss, expected.loss) < BOUND
    theirs.shadow_loss_weight = 0.0
    assert relative_error(found.loss - 0.2 * found.shadow_loss, theirs(**batch).loss) < BOUND
    found.loss.backward()
    expected.loss.backward()
    errors = gradient_errors(ours, trained(theirs), counterpart)
    assert {name: error for name, error in errors.items() if not error < BOUND} == {}
    assert {
        name
        for name, parameter in trained(theirs).items()
        if parameter.grad is None or not parameter.grad.any()
    } == LAST_UPDATE


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_language_model_equals_the_authors(model_type: str) -> None:
    """Catches a wrong equation, activation, norm, scale or weight of a loss, in the forward pass or in any
    gradient.
    """
    compare(*both(model_type), language_batch())


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_classifier_equals_the_authors(model_type: str) -> None:
    """Catches another pooled token or a head that trains differently; right padding, which is what the
    authors get right.
    """
    compare(*both(model_type, "sequence-classification"), classification_batch())


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_explicit_narrower_shadow_equals_the_authors(model_type: str) -> None:
    """Catches a projection on the wrong side, and a shadow that reads the base's embeddings in place of its
    own.
    """
    compare(*both(model_type, narrow=True), language_batch())


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@torch.no_grad()
def test_cached_greedy_generation_equals_the_authors(model_type: str) -> None:
    """Catches a cache that changes what is written, against a second implementation of one."""
    ours, theirs = both(model_type)
    settings = {"input_ids": token_ids(2, 7), "max_new_tokens": 10, "do_sample": False, "use_cache": True}
    assert torch.equal(ours.generate(**settings), theirs.generate(**settings))


def test_the_published_parameter_count_is_ours_and_the_dead_update() -> None:
    """Catches a tensor too many or too few: Qwen3-0.6B with r 16, u 10 and an MLP of 256 was published with
    9,073,920 to train.
    """
    shape = Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        ours = attached(Qwen3ForCausalLM(shape), ShadowConfig(variant="paper", shadow_intermediate_size=256))
        theirs = shadow_peft.get_shadow_model(
            Qwen3ForCausalLM(shape), shadow_peft.ShadowConfig(shadow_intermediate_size=256)
        )
    count, their_count = (
        sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)
    )
    dead = 4 * 10 * 1024  # T and G after the last block: four matrices between the width and u
    assert len(arch.blocks_of(ours.base)) - 1 == len(ours.adapters["default"].injections)
    assert their_count == count + dead == 9_073_920
