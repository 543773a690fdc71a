"""Our variant `peft` against Hugging Face PEFT's tuner: the same weights give the same outputs and gradients.

One named deviation: PEFT updates the shadow state after the last block too, where nobody reads it. We have no
weights there; theirs, asserted here, never get a gradient. Losses pass through transformers' own float32,
hence 1e-6 and not less.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
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
from torch import Tensor
from transformers import AutoModelForCausalLM

from shadowpeft import ShadowConfig, ShadowedModel, config
from shadowpeft.compare.peft_methods import peft_model

OURS = ShadowConfig(variant="peft", r=4, update_width=5, alpha=0.3, dropout=0.0, shadow_loss_weight=0.2)
THEIRS = {
    "r": 4,
    "update_hidden_size": 5,
    "shadow_alpha": 0.3,
    "shadow_dropout": 0.0,
    "auxiliary_loss_weight": 0.2,
}
BOUND = 1e-6

# Our names and PEFT's, as its tuner (`PeftModel.base_model`) lists them.
NAMES = {
    r"shadow\.backbone\.(.+)": r"shadow_backbone.default.\1",
    r"shadow\.projection\.weight": r"shadow_projection.default.weight",
    r"injections\.(\d+)\.(down|up)\.weight": r"model.model.layers.\1.shadow_\2.default.weight",
    r"updates\.(\d+)\.(transform|gate)_in\.(\w+)": r"model.model.layers.\1.shadow_update_\2.default.0.\3",
    r"updates\.(\d+)\.(transform|gate)_out\.(\w+)": r"model.model.layers.\1.shadow_update_\2.default.2.\3",
    r"score\.weight": r"model.score.modules_to_save.default.weight",
    r"shadow_score\.weight": r"shadow_head.default.weight",
}
LAST_UPDATE = {
    f"model.model.layers.{BLOCKS - 1}.shadow_update_{network}.default.{layer}.{kind}"
    for network in ("transform", "gate")
    for layer in (0, 2)
    for kind in ("weight", "bias")
}


def counterpart(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Find PEFT's tensor for one of ours."""
    (found,) = (match.expand(theirs) for ours, theirs in NAMES.items() if (match := re.fullmatch(ours, name)))
    return tensors[found]


def trained(model: peft.PeftModel) -> dict[str, Tensor]:
    return {
        name: parameter for name, parameter in model.base_model.named_parameters() if parameter.requires_grad
    }


def both(
    model_type: str, task: str = "causal-lm", shadow: Path | None = None
) -> tuple[ShadowedModel, peft.PeftModel]:
    """Build the same shadowed model twice, in float64, with every weight random; `shadow` is the folder of an
    explicit one.
    """
    ours_base, theirs_base = (tiny_model(model_type, task, dtype=torch.float64) for _ in range(2))
    explicit = None if shadow is None else AutoModelForCausalLM.from_pretrained(shadow, dtype=torch.float64)
    ours = perturb(attached(ours_base, OURS, shadow=explicit))
    kind = {"causal-lm": "CAUSAL_LM", "sequence-classification": "SEQ_CLS"}[task]
    settings = peft.ShadowConfig(
        task_type=kind, shadow_model="mirror" if shadow is None else str(shadow), **THEIRS
    )
    theirs = peft_model(theirs_base, settings).double().eval()
    assert copy_weights(ours, trained(theirs), counterpart) == LAST_UPDATE
    return ours, theirs


def compare(ours: ShadowedModel, theirs: peft.PeftModel, batch: dict[str, Any]) -> None:
    """Compare logits, both losses and every gradient on one batch; their dead weights must have none."""
    found, expected = ours(**batch), theirs(**batch)
    assert relative_error(found.logits, expected.logits) < BOUND
    assert relative_error(found.shadow_loss, expected.shadow_loss) < BOUND
    assert relative_error(found.loss, expected.loss) < BOUND
    found.loss.backward()
    expected.loss.backward()
    errors = gradient_errors(ours, trained(theirs), counterpart)
    assert {name: error for name, error in errors.items() if not error < BOUND} == {}
    assert {
        name
        for name, parameter in trained(theirs).items()
        if parameter.grad is None or not parameter.grad.any()
    } == LAST_UPDATE


@pytest.fixture(scope="module")
def narrow_shadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shadow")
    tiny_model("qwen3", seed=3, config=tiny_config("qwen3", hidden_size=16)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_language_model_equals_peft(model_type: str) -> None:
    """Catches a wrong equation, activation, bias, scale or weight of a loss, in the forward pass or in any
    gradient.
    """
    compare(*both(model_type), language_batch())


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_classifier_equals_peft(model_type: str) -> None:
    """Catches another pooled token or a head that trains differently; right padding, which is what PEFT gets
    right.
    """
    compare(*both(model_type, "sequence-classification"), classification_batch())


def test_explicit_narrower_shadow_equals_peft(narrow_shadow: Path) -> None:
    """Catches a projection on the wrong side, and a shadow that reads the base's embeddings in place of its
    own.
    """
    compare(*both("qwen3", shadow=narrow_shadow), language_batch())


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@torch.no_grad()
def test_cached_greedy_generation_equals_peft(model_type: str) -> None:
    """Catches a cache that changes what is written, against a second implementation of one."""
    ours, theirs = both(model_type)
    settings = {"input_ids": token_ids(2, 7), "max_new_tokens": 10, "do_sample": False, "use_cache": True}
    assert torch.equal(ours.generate(**settings), theirs.generate(**settings))


def test_every_setting_of_pefts_shadow_is_ours_or_refused_by_name():
    """Catches a setting that a later PEFT adds: it should be said what becomes of it."""
    general = {field.name for field in dataclasses.fields(peft.PeftConfig)}
    theirs = {field.name for field in dataclasses.fields(peft.ShadowConfig)} - general
    assert theirs - set(ShadowConfig().to_dict()) <= set(config._ELSEWHERE)
