"""Sizes at which every method trains as many parameters as LoRA."""

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.families import tiny_config, tiny_model
from helpers.tiny_tasks import TASKS, cell_of

from shadowpeft import ConfigError
from shadowpeft.compare import (
    matching,
    methods,
)
from shadowpeft.compare.matching import MATCHED
from shadowpeft.compare.study import Study
from shadowpeft.storage import stock_models


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_budgets_are_met_on_the_real_model(model_type: str, study: Study, tmp_path: Path) -> None:
    """Catches a count on the meta device that the real model does not have, in families with other sizes and
    layouts."""
    tiny_model(model_type).save_pretrained(tmp_path / model_type)
    for method in MATCHED:
        for rank in (12, 24):
            cell = cell_of(study, method, "choices", model=str(tmp_path / model_type), rank=rank)
            beside = dataclasses.replace(study, shadow_model=cell.model)
            built = methods.build(cell, beside, TASKS["choices"], 0, torch.device("cpu"))
            wanted = matching.lora_parameters(cell.model) * rank
            assert abs(built.trainable() - wanted) <= 0.05 * wanted, (method, rank, built.config)


def test_whole_backbone_is_kept_where_it_fits_and_shrunk_to_its_share_where_not(tiny: str) -> None:
    """Catches a search that spends everything on one part, or shrinks what fits."""
    for variant, whole in (("paper", 96), ("normed", 96 // 4)):
        roomy, tight = (matching.matched(tiny, "shadow", rank, (("variant", variant),)) for rank in (400, 3))
        assert "shadow_attention_heads" not in roomy
        assert roomy["shadow_intermediate_size"] == whole
        assert tight["shadow_intermediate_size"] < 96 // 4
        assert tight["r"] > 1


def test_a_frozen_shadow_is_counted_without_its_backbone(study: Study, tmp_path: Path) -> None:
    """Catches frozen weights that count as trained, and a budget met by more than one in a hundred off."""
    narrow = tiny_config("qwen3", hidden_size=16, vocab_size=stock_models.load_config(study.model).vocab_size)
    tiny_model("qwen3", config=narrow).save_pretrained(tmp_path / "narrow")
    beside = dataclasses.replace(study, shadow_model=str(tmp_path / "narrow"))
    cell = cell_of(study, "shadow-frozen", "choices", rank=24)
    built = methods.build(cell, beside, TASKS["choices"], 0, torch.device("cpu"))
    assert abs(built.trainable() / (24 * matching.lora_parameters(study.model)) - 1) <= 0.01
    assert not any(weight.requires_grad for weight in built.model.adapter.shadow.backbone.parameters())
    assert built.model.adapter.shadow.projection.weight.requires_grad


def test_given_sizes_stay_as_given(tiny: str) -> None:
    """Catches a search that overrules the user."""
    given = (("shadow_attention_heads", 2), ("shadow_intermediate_size", 24), ("update_width", 3))
    found = matching.matched(tiny, "shadow", 16, given)
    assert dict(given).items() <= found.items()


def test_unmatchable_budget_is_one_sentence_with_the_rank_that_would_do(tiny: str) -> None:
    """Catches a comparison at unequal budgets, and advice that does not work."""
    with pytest.raises(
        ConfigError,
        match=r"peft-shadow cannot be matched .* nearest it comes is [\d,]+, .*; rank \d+ would do",
    ) as caught:
        matching.matched(tiny, "peft-shadow", 1)
    matching.matched(tiny, "peft-shadow", int(str(caught.value).split("rank ")[-1].split()[0]))


def test_sizes_are_counted_once_for_all_trials_and_ranks(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a minute of counting before every run of a search, and an override that is a list."""
    counted = []
    costs = matching.size_costs
    monkeypatch.setattr(
        matching, "size_costs", lambda counter: counted.append(counter.settings) or costs(counter)
    )
    given = {"lora": {"target_modules": ["q_proj", "v_proj"]}, "shadow": {"dropout": 0.07}}
    changed = dataclasses.replace(study, methods="lora,shadow", ranks="16,24", overrides=given)
    methods.check(changed)
    for alpha in (0.1, 0.7):
        cell = cell_of(study, "shadow", alpha=alpha)
        built = methods.build(cell, changed, TASKS["choices"], 0, torch.device("cpu"))
        assert built.config["alpha"] == alpha
    assert counted == [{"dropout": 0.07}]
    lora = methods.build(cell_of(study, "lora"), changed, TASKS["choices"], 0, torch.device("cpu"))
    assert {name.split(".")[-4] for name, _ in matching.trained_parameters(lora.model)} == {
        "q_proj",
        "v_proj",
    }
