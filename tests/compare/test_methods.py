"""Each method's model: its types, its settings, and how it answers."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from helpers.tiny_tasks import TASKS, both, cell_of

from shadowpeft.compare import (
    methods,
    run_cell,
)
from shadowpeft.compare.study import Study


@pytest.mark.parametrize("method", ["lora", "shadow", "peft-shadow"])
def test_bfloat16_trains_adapters_in_float32(method: str, study: Study) -> None:
    """Catches adapters that are trained in bfloat16, where small steps are lost, and a base that is not in
    it."""
    cell, half = cell_of(study, method), dataclasses.replace(study, bf16=True)
    built = methods.build(cell, half, TASKS["classes"], 0, torch.device("cpu"))
    types = {parameter.requires_grad: parameter.dtype for parameter in built.model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert math.isfinite(run_cell.run_cell(cell, half)[0]["train_loss"])


@pytest.mark.parametrize("method", ["lora", "shadow", "peft-shadow"])
def test_answers_are_greedy_whatever_the_base_came_with(method: str, study: Study, tmp_path: Path) -> None:
    """Catches a base's penalty on repetition that some models of the methods inherit and others do not."""
    base, tokenizer = both(study.model)
    base.generation_config.repetition_penalty = 1.3
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "fined")
    cell = cell_of(study, method, "questions", model=str(tmp_path / "fined"))
    built = methods.build(cell, study, TASKS["questions"], 0, torch.device("cpu"))
    models = [built.model, *([] if built.detach is None else [built.detach()])]
    assert {model.generation_config.repetition_penalty for model in models} <= {None, 1.0}
    assert built.model.generation_config.eos_token_id == base.generation_config.eos_token_id


def test_overrides_and_alpha_reach_the_models(study: Study) -> None:
    """Catches settings that are recorded but not used."""
    given = {"lora": {"lora_dropout": 0.5}, "shadow": {"dropout": 0.4, "shadow_layers": 1.0}}
    changed = dataclasses.replace(study, methods="lora,shadow,peft-shadow", overrides=given)
    built = {
        method: methods.build(
            cell_of(study, method, alpha=alpha), changed, TASKS["choices"], 0, torch.device("cpu")
        )
        for method, alpha in (("lora", None), ("shadow", 0.7), ("peft-shadow", 0.7))
    }
    ours = built["shadow"].model.adapters["default"].settings
    assert (ours.alpha, ours.dropout, ours.shadow_layers) == (0.7, 0.4, 1)
    assert built["lora"].model.peft_config["default"].lora_dropout == 0.5
    assert built["peft-shadow"].model.peft_config["default"].shadow_alpha == 0.7
