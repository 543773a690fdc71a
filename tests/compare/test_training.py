"""Training is the same for every method: the rows, their order, the rates."""

import dataclasses
from typing import Any

import pytest
from helpers.families import perturb
from helpers.tiny_tasks import cell_of

from shadowpeft import ConfigError
from shadowpeft.compare import (
    examples,
    matching,
    methods,
    run_cell,
    training,
)
from shadowpeft.compare.search_space import METHODS
from shadowpeft.compare.study import Study


@pytest.mark.parametrize("method", ["shadow", "shadow-paper", "shadow-explicit"])
def test_the_backbone_is_trained_at_its_own_rate(
    method: str, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a rate that is recorded and not used, or that reaches heads and coupling."""
    kept: list[Any] = []

    def keeping(*args: Any, **options: Any) -> methods.Built:
        built = methods.build(*args, **options)
        perturb(built.model)  # a fresh coupling has parts that no gradient reaches yet
        kept.append(
            (
                built.model,
                {name: weight.detach().clone() for name, weight in matching.trained_parameters(built.model)},
            )
        )
        return built

    monkeypatch.setattr(run_cell, "build", keeping)
    monkeypatch.setattr(training, "WARMUP", 0)  # the first of few steps would be of nothing
    cell = cell_of(study, method, stage="search", backbone_learning_rate=1e-3)
    plan = dataclasses.replace(study, steps=1, batch_size=8, overrides={method: {"dropout": 0.0}})
    (row,) = run_cell.run_cell(cell, plan)
    assert (row["learning_rate"], row["alpha"], row["backbone_learning_rate"]) == (1e-2, 0.3, 1e-3)
    assert row["key"].endswith(" lr=0.01 alpha=0.3 backbone_lr=0.001")
    ((model, before),) = kept
    # The first step of AdamW moves a weight by the learning rate, whatever its gradient.
    moved = {
        name: (model.get_parameter(name).detach() - weight).abs().max().item()
        for name, weight in before.items()
    }
    shadow = "adapters.default.shadow."
    assert {
        "adapters.default.score.weight",
        "adapters.default.shadow_score.weight",
        f"{shadow}backbone.norm.weight",
    } <= moved.keys()
    assert moved == pytest.approx(
        {name: 1e-3 if name.startswith(shadow) else 1e-2 for name in moved}, rel=1e-2
    )
    assert bool(row["config"]["unit_state"]) == (method == "shadow-explicit"), (
        "the row says what the pretrained shadow settled"
    )


@pytest.mark.parametrize("method", ["lora", "shadow", "shadow-frozen", "full"])
def test_the_head_moves_at_its_own_rate(method: str, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rate that is not applied, that misses PEFT's copy of the head, or that reaches the body."""
    kept: list[tuple[Any, dict[str, Any]]] = []
    build = run_cell.build

    def keeping(*given: Any, **named: Any) -> Any:
        built = build(*given, **named)
        weights = {name: w.detach().clone() for name, w in matching.trained_parameters(built.model)}
        kept.append((built.model, weights))
        return built

    monkeypatch.setattr(run_cell, "build", keeping)
    monkeypatch.setattr(training, "WARMUP", 0)
    cell = cell_of(study, method, stage="search", head_learning_rate=1e-3)
    (row,) = run_cell.run_cell(cell, dataclasses.replace(study, steps=1, batch_size=8))
    assert row["head_learning_rate"] == 1e-3
    assert row["key"].endswith(" head_lr=0.001")
    ((model, before),) = kept
    moved = {
        name: (model.get_parameter(name).detach() - weight).abs().max().item()
        for name, weight in before.items()
    }
    heads = {name for name in moved if "score." in name or "shadow_head" in name}
    assert heads
    # The first step of AdamW moves a weight by the learning rate, whatever its gradient.
    assert {name: moved[name] for name in heads} == pytest.approx(dict.fromkeys(heads, 1e-3), rel=1e-2)
    body = [moved[name] for name in moved if name not in heads and moved[name]]
    assert body == pytest.approx([1e-2] * len(body), rel=1e-2)
    assert body


def test_a_rate_of_no_head_is_refused(study: Study) -> None:
    """Catches a rate that is asked for and used by no weight."""
    cell = cell_of(study, "lora", "questions", stage="search", head_learning_rate=1e-3)
    with pytest.raises(ConfigError, match="head_learning_rate is the rate of a classifier's new head"):
        run_cell.run_cell(cell, study)


def test_one_rate_for_both_is_one_rate(study: Study) -> None:
    """Catches a cell without the setting that is trained otherwise than before, and a backbone that the
    schedule leaves out."""
    losses = []
    for rate in (None, 1e-2, 1e-4):
        cell = cell_of(study, "shadow", stage="search", backbone_learning_rate=rate)
        (row,) = run_cell.run_cell(cell, dataclasses.replace(study, steps=6))
        assert row["backbone_learning_rate"] == rate
        losses.append(row["metrics"]["nll"])
    assert losses[0] == losses[1] != losses[2]


def test_all_methods_see_the_same_rows_in_the_same_order(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an order that a method's own random draws or the Trainer decide, and steps that are not exactly
    those asked for."""
    seen: dict[str, list[Any]] = {}
    collate = examples.ClassCollator.__call__
    for method in METHODS:
        batches = seen.setdefault(method, [])
        monkeypatch.setattr(
            examples.ClassCollator,
            "__call__",
            lambda self, rows, kept=batches: kept.append(rows) or collate(self, rows),
        )
        run_cell.run_cell(cell_of(study, method, stage="search"), study)
    assert all(batches == seen["base"] for batches in seen.values())
    assert [len(batch) for batch in seen["base"]] == [2, 2]
