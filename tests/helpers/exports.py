"""Models exported as a user would do it, and the logits of shadow and exported model that must be equal."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig

from helpers.families import attached, padded, perturb, tiny_model, token_ids
from helpers.tokenizers import CHATML, build_tokenizer
from shadowpeft import ShadowConfig, ShadowedModel, arch
from shadowpeft.export import export

# In float32, relative to the largest logit: the stated bound.
BOUND = 1e-5


def made(
    base: PretrainedConfig,
    shadow: PretrainedConfig | None = None,
    task: arch.Task = "causal-lm",
    **settings: Any,
) -> ShadowedModel:
    network = None if shadow is None else tiny_model(shadow.model_type, seed=7, config=shadow)
    if network is not None and network.lm_head.bias is not None:
        network.lm_head.bias.data.fill_(5.0)  # must not reach the export
    return perturb(
        attached(tiny_model(base.model_type, task, config=base), ShadowConfig(**settings), network)
    ).eval()


def save_all(model: ShadowedModel, folder: Path) -> None:
    """Write base, tokenizer and adapter as a user has them, to `base` and `adapter` in a folder."""
    model.base.save_pretrained(folder / "base")
    build_tokenizer(CHATML).save_pretrained(folder / "base")
    model.save_pretrained(folder / "adapter")


def exported(model: ShadowedModel, tmp_path: Path, **arguments: Any) -> Path:
    save_all(model, tmp_path)
    export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small", **arguments)
    return tmp_path / "small"


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def stock_logits(folder: Path, **inputs: torch.Tensor) -> torch.Tensor:
    auto = AutoModelForCausalLM
    if "Classification" in (folder / "config.json").read_text(encoding="utf-8"):
        auto = AutoModelForSequenceClassification
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[f"{how}_keys"] for how in ("missing", "unexpected", "mismatched"))
    with torch.no_grad():
        return model(**inputs).logits


def shadow_logits(model: ShadowedModel, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, output_shadow_logits=True).shadow_logits


def batch() -> dict[str, torch.Tensor]:
    ids, mask, _ = padded([token_ids(1, 12)[0], token_ids(1, 7, seed=1)[0]], "right")
    return {"input_ids": ids, "attention_mask": mask}
