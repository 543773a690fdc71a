"""Runs of a comparison: equal budgets, equal training, and measurements that say what they claim, on tiny tasks and models."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import BLOCKS, perturb, tiny_model
from transformers import AutoTokenizer, PreTrainedModel, Qwen3Config

from shadowpeft import ConfigError, arch, attach
from shadowpeft.compare import budget, fit, measure, methods, run_cell, tasks
from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import METHODS, OURS, Study
from shadowpeft.compare.tasks.base import Item, Scores, Task
from shadowpeft.embedded import MODEL
from shadowpeft.errors import UserError

# PEFT 0.21.2 asks transformers 5.23 under a name it has since deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "star"]
MATCHED = ("lora", "dora", "shadow", "shadow-paper", "peft-shadow")
DETACHES = ("shadow", "shadow-paper", "shadow-explicit", "peft-shadow")


def _score(items: Any, answers: Any) -> Scores:
    correct = [int(item.target == answer) for item, answer in zip(items, answers, strict=True)]
    return Scores(correct, {"accuracy": sum(correct) / len(correct)})


def _text(index: int) -> str:
    return " ".join(WORDS[(index * step + step) % len(WORDS)] for step in range(1, 4 + index % 5))


def _classes(split: str, source: Any) -> list[Item]:
    return [Item(_text(i), i % 3) for i in range({"train": 20, "validation": 6, "test": 7}[split])]


def _questions(split: str, source: Any) -> list[Item]:
    return [
        Item(f"Say {_text(i)}:", WORDS[i % 12], f" {WORDS[i % 12]}")
        for i in range({"train": 20, "validation": 6, "test": 5}[split])
    ]


def _choices(split: str, source: Any) -> list[Item]:
    return [
        Item(f"{_text(i)} Answer:", i % 4, f" {'ABCD'[i % 4]}", choices=(" A", " B", " C", " D"))
        for i in range(6)
    ]


TASKS = {
    "classes": Task(
        "classes", "classification", "accuracy", _classes, _score, ("a", "b", "c"), max_length=16
    ),
    "questions": Task(
        "questions",
        "generation",
        "accuracy",
        _questions,
        _score,
        max_length=64,
        max_new_tokens=3,
        stop=("\n",),
    ),
    "choices": Task("choices", "choice", "accuracy", _choices, _score, max_length=64),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model with a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=96, num_hidden_layers=BLOCKS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    tiny_model("qwen3", config=config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def study(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The settings of a study of two steps, with the tiny tasks known."""
    for name, task in TASKS.items():
        monkeypatch.setitem(tasks.TASKS, name, task)
    (tmp_path / "wiki_en").mkdir()
    texts = [json.dumps({"text": f"{_text(i)}. " * 20}) for i in range(4)]
    (tmp_path / "wiki_en" / "validation.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return Study(
        model=tiny, tasks="classes", output=str(tmp_path / "out"), data_dir=str(tmp_path), steps=2, batch_size=2, forgetting_rows=3,
        eval_batch_size=4, shadow_model=tiny, device="cpu", ood=False,
    )  # fmt: skip


def _cell(study: Study, method: str, task: str = "classes", stage: Any = "final", **changes: Any) -> Cell:
    alpha = 0.3 if "shadow" in method else None
    return dataclasses.replace(Cell(stage, study.model, task, method, 16, 0, 1e-2, alpha), **changes)


# Whole cells


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_trained_and_measured_on_every_kind_of_task(
    method: str, task: str, study: Study
) -> None:
    """Catches a method that cannot train, detach or be measured on a kind of task, and a row that JSON cannot hold."""
    rows = run_cell.run_cell(_cell(study, method, task), study)
    assert [row["mode"] for row in rows] == (["attached", "detached"] if method in DETACHES else ["attached"])
    for row in rows:
        json.dumps(row, allow_nan=False)
        assert 0 <= row["value"] <= 1
        assert len(row["correct"]) == row["items"]
        assert row["value"] == pytest.approx(row["correct"].count("1") / row["items"])
        assert row["ms_per_answer"] > 0
        assert (row["calibration"] is None) == (task == "questions")
        trains = method != "base" or task == "classes"
        assert row["steps"] == (2 if trains else 0)
        assert (row["train_loss"] is not None) == trains
    assert math.isfinite(rows[0]["forgetting"])
    if method in MATCHED:
        assert abs(rows[0]["trainable"] / methods.lora_parameters(study.model) / 16 - 1) <= 0.05
    assert (rows[0]["trainable_with_heads"] > rows[0]["trainable"]) == (task == "classes")


@pytest.mark.parametrize("method", ["lora", "shadow", "peft-shadow"])
def test_bfloat16_trains_adapters_in_float32(method: str, study: Study) -> None:
    """Catches adapters that are trained in bfloat16, where small steps are lost, and a base that is not in it."""
    cell, half = _cell(study, method), dataclasses.replace(study, bf16=True)
    built = methods.build(cell, half, TASKS["classes"], 0, torch.device("cpu"))
    types = {parameter.requires_grad: parameter.dtype for parameter in built.model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    assert math.isfinite(run_cell.run_cell(cell, half)[0]["train_loss"])


def test_search_of_a_generation_task_reads_the_loss_of_validation_alone(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a search that reads the test split, and a loss that counts the prompt."""
    read = []
    watched = dataclasses.replace(
        TASKS["questions"], load=lambda split, source: read.append(split) or _questions(split, source)
    )
    monkeypatch.setitem(tasks.TASKS, "questions", watched)
    (row,) = run_cell.run_cell(_cell(study, "base", "questions", "search"), study)
    assert set(read) == {"validation"}
    assert row["metric"] == "loss"
    model, tokenizer = PreTrained(study.model).both()
    expected = []
    for item in _questions("validation", None):
        prompt = tokenizer(item.prompt)["input_ids"]
        answer = [*tokenizer(item.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        logs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected += [-logs[len(prompt) - 1 + place, token].item() for place, token in enumerate(answer)]
    assert row["value"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_cost_reads_no_test_row_and_times_steps(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stage that reads the test split once more, and warm-up steps that are counted."""
    read = []
    watched = dataclasses.replace(
        TASKS["classes"], load=lambda split, source: read.append(split) or _classes(split, source)
    )
    monkeypatch.setitem(tasks.TASKS, "classes", watched)
    monkeypatch.setattr(run_cell, "TIMED_STEPS", 3)
    rows = run_cell.run_cell(_cell(study, "shadow", stage="cost"), study)
    assert "test" not in read
    assert [row["mode"] for row in rows] == ["attached", "detached"]
    assert all(row["value"] > 0 and row["ms_per_answer"] > 0 and row["steps"] == 8 for row in rows)


def test_only_measuring_reads_the_test_split(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches test items that are answered a second time to take the time of answers."""
    timed: list[Any] = []
    monkeypatch.setattr(measure, "ms_per_answer", lambda ask, items, device: timed.extend(items) or 1.0)
    watched = dataclasses.replace(
        TASKS["classes"], load=lambda split, source: [Item(f"{split} cat", i % 3) for i in range(6)]
    )
    monkeypatch.setitem(tasks.TASKS, "classes", watched)
    run_cell.run_cell(_cell(study, "shadow"), study)
    assert {item.prompt for item in timed} == {"validation cat"}


@pytest.mark.parametrize("method", ["lora", "shadow", "peft-shadow"])
def test_answers_are_greedy_whatever_the_base_came_with(method: str, study: Study, tmp_path: Path) -> None:
    """Catches a base's penalty on repetition that some models of the methods inherit and others do not."""
    base, tokenizer = PreTrained(study.model).both()
    base.generation_config.repetition_penalty = 1.3
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "fined")
    cell = _cell(study, method, "questions", model=str(tmp_path / "fined"))
    built = methods.build(cell, study, TASKS["questions"], 0, torch.device("cpu"))
    models = [built.model, *([] if built.detach is None else [built.detach()])]
    assert {model.generation_config.repetition_penalty for model in models} <= {None, 1.0}
    assert built.model.generation_config.eos_token_id == base.generation_config.eos_token_id


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_divergence(wrong: float) -> None:
    """Catches an answer that is read off logits that overflowed."""
    with pytest.raises(UserError, match="training diverged"):
        measure._by_probability([torch.tensor([0.1, wrong, 0.3])])


def test_detached_row_is_what_the_detached_model_answers(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches rows called detached that were measured attached."""
    kept: list[methods.Built] = []

    def keeping(*args: Any) -> methods.Built:
        kept.append(methods.build(*args))
        return kept[-1]

    monkeypatch.setattr(run_cell, "build", keeping)
    fast = _cell(study, "shadow", learning_rate=0.3)
    rows = run_cell.run_cell(fast, study)
    tokenizer, items = AutoTokenizer.from_pretrained(study.model), _classes("test", None)
    attached, detached = (
        measure.answer(model, tokenizer, TASKS["classes"], items, 3, 16)
        for model in (kept[0].model, kept[0].model.detached())
    )
    assert attached.probabilities != detached.probabilities
    for row, given in zip(rows, (attached, detached), strict=True):
        sure = given.probabilities
        assert sure is not None
        assert row["metrics"]["nll"] == pytest.approx(
            measure.negative_log_likelihood(sure, [item.target for item in items]), rel=1e-4
        )


@pytest.mark.parametrize("method", OURS)
def test_the_backbone_is_trained_at_its_own_rate(
    method: str, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a rate that is recorded and not used, or that reaches heads and coupling."""
    kept: list[Any] = []

    def keeping(*args: Any) -> methods.Built:
        built = methods.build(*args)
        perturb(built.model)  # a fresh coupling has parts that no gradient reaches yet
        kept.append(
            (built.model, {name: weight.detach().clone() for name, weight in methods._trained(built.model)})
        )
        return built

    monkeypatch.setattr(run_cell, "build", keeping)
    monkeypatch.setattr(fit, "WARMUP", 0)  # the first of few steps would be of nothing
    cell = _cell(study, method, stage="search", backbone_learning_rate=1e-3)
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


def test_one_rate_for_both_is_one_rate(study: Study) -> None:
    """Catches a cell without the setting that is trained otherwise than before, and a backbone that the schedule leaves out."""
    losses = []
    for rate in (None, 1e-2, 1e-4):
        cell = _cell(study, "shadow", stage="search", backbone_learning_rate=rate)
        (row,) = run_cell.run_cell(cell, dataclasses.replace(study, steps=6))
        assert row["backbone_learning_rate"] == rate
        losses.append(row["metrics"]["nll"])
    assert losses[0] == losses[1] != losses[2]


def test_cells_do_not_influence_each_other(study: Study) -> None:
    """Catches a base, a cache or a random state that a cell leaves changed to the next."""
    cell = _cell(study, "lora", "choices")
    first = run_cell.run_cell(cell, study)[0]
    run_cell.run_cell(_cell(study, "full", "choices", learning_rate=0.5), study)
    again = run_cell.run_cell(cell, study)[0]
    assert [first[name] for name in ("train_loss", "metrics", "forgetting")] == [
        again[name] for name in ("train_loss", "metrics", "forgetting")
    ]


def test_rows_are_drawn_the_same_for_every_seed() -> None:
    """Catches a draw that depends on the cell, so that methods would be compared on different items."""
    drawn = run_cell.draw(range(100), 10)
    assert drawn == run_cell.draw(range(100), 10) == sorted(drawn)
    assert run_cell.draw(range(5), 10) == list(range(5))


def test_skipped_rows_are_those_that_were_drawn_before() -> None:
    """Catches a second study that reads test rows of the first, draws others each time, or a first whose rows are no longer the same."""
    rows = [f"row {index}" for index in range(100)]
    first = run_cell.draw(rows, 30)
    assert (
        first
        == run_cell.draw(rows, 30, ())
        == [rows[index] for index in sorted(random.Random(0).sample(range(100), 30))]
    )
    assert run_cell.draw(rows, None) == run_cell.draw(rows, 100) == rows
    later = run_cell.draw(rows, 40, (30,))
    assert later == run_cell.draw(rows, 40, (30,))
    assert (len(later), set(later) & set(first)) == (40, set())
    left = [row for row in rows if row not in first]
    assert run_cell.draw(rows, None, (30,)) == run_cell.draw(rows, 90, (30,)) == left
    assert later == [row for row in left if row in later] != left[:40], (
        "in their order, and not the first ones"
    )
    assert later == [left[index] for index in sorted(random.Random(0).sample(range(70), 40))], (
        "the rows of the studies in results/"
    )
    assert run_cell.draw(rows, 40, (100,)) == []


def test_a_third_study_skips_the_rows_of_both_before() -> None:
    """Catches a third study that reads rows of the first or of the second, as one that skips a single draw of their sum does."""
    rows = [f"row {index}" for index in range(100)]
    first, second, third = (run_cell.draw(rows, 30, skips) for skips in ((), (30,), (30, 30)))
    assert len({*first, *second, *third}) == 90
    fourth = run_cell.draw(rows, None, (30, 30, 30))
    assert fourth == [row for row in rows if row not in {*first, *second, *third}]
    assert third == [row for row in rows if row in {*third}], "in their order"
    assert set(run_cell.draw(rows, 30, (60,))) & {*first, *second}, "what the test can see"
    uneven = [
        set(run_cell.draw(rows, limit, skips)) for limit, skips in ((10, ()), (50, (10,)), (None, (10, 50)))
    ]
    assert (set.union(*uneven), sum(map(len, uneven))) == ({*rows}, 100)
    assert run_cell.draw(rows, 40, (60, 60)) == []


@pytest.fixture
def partnered(study: Study, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Settings of three test rows a task, of which `classes` has nine, and eight its partner `others`."""

    def load(name: str, count: int) -> Any:
        return lambda split, source: [Item(f"{name} {split} {WORDS[i]}", i % 3) for i in range(count)]

    classes = dataclasses.replace(TASKS["classes"], load=load("own", 9), partners=("others",))
    monkeypatch.setitem(tasks.TASKS, "classes", classes)
    monkeypatch.setitem(
        tasks.TASKS, "others", dataclasses.replace(classes, name="others", load=load("other", 8), partners=())
    )
    return dataclasses.replace(study, ood=True, test_rows=3, validation_rows=9)


def test_only_test_rows_are_skipped_and_those_of_partners_too(
    partnered: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a setting that never reaches the measuring, that takes rows off the validation split, or leaves a partner's rows in."""
    asked: dict[str, list[str]] = {}
    answer = measure.answer

    def noting(model: Any, tokenizer: Any, task: Task, items: Any, *args: Any, **options: Any) -> Any:
        if len(items) > 1:  # not those whose time is taken one by one
            asked.setdefault(task.name, []).extend(item.prompt for item in items)
        return answer(model, tokenizer, task, items, *args, **options)

    monkeypatch.setattr(measure, "answer", noting)
    seen, digests = [], []
    for skip in (0, 3, [3, 3]):
        asked.clear()
        rows = run_cell.run_cell(_cell(partnered, "base"), dataclasses.replace(partnered, test_skip=skip))
        seen.append({name: set(prompts) for name, prompts in asked.items()})
        digests.append({row["task"]: row["items_digest"] for row in rows})
    counts = [{name: len(prompts) for name, prompts in study.items()} for study in seen]
    assert counts == [{"classes": 3, "others": 3}, {"classes": 3, "others": 3}, {"classes": 3, "others": 2}]
    for name, count in (("classes", 9), ("others", 8)):
        assert len(set.union(*(study[name] for study in seen))) == count, "no row twice"
        assert len({study[name] for study in digests}) == 3, "the digest tells which rows were read"
    (row,) = run_cell.run_cell(
        _cell(partnered, "base", stage="search"), dataclasses.replace(partnered, test_skip=[3, 3])
    )
    assert row["items"] == 9


def test_each_task_skips_its_own_rows(partnered: Study) -> None:
    """Catches a partner that is tested without the rows that the task trained on skips, or the other way round."""

    def read(test_skip: Any) -> dict[str, str]:
        rows = run_cell.run_cell(
            _cell(partnered, "base"), dataclasses.replace(partnered, test_skip=test_skip)
        )
        return {row["task"]: row["items_digest"] for row in rows}

    none, once, twice = map(read, (0, 3, [3, 3]))
    assert read({"classes": 3}) == {"classes": once["classes"], "others": none["others"]}
    assert read({"others": [3, 3]}) == {"classes": none["classes"], "others": twice["others"]}
    assert read({"classes": [3, 3], "others": 3}) == {"classes": twice["classes"], "others": once["others"]}


def test_all_methods_see_the_same_rows_in_the_same_order(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an order that a method's own random draws or the Trainer decide, and steps that are not exactly those asked for."""
    seen: dict[str, list[Any]] = {}
    collate = fit.ClassCollator.__call__
    for method in METHODS:
        batches = seen.setdefault(method, [])
        monkeypatch.setattr(
            fit.ClassCollator,
            "__call__",
            lambda self, rows, kept=batches: kept.append(rows) or collate(self, rows),
        )
        run_cell.run_cell(_cell(study, method, stage="search"), study)
    assert all(batches == seen["base"] for batches in seen.values())
    assert [len(batch) for batch in seen["base"]] == [2, 2]


def test_order_uses_every_row_once_before_any_twice() -> None:
    """Catches sampling with replacement, and a second pass in the order of the first."""
    order = fit.ordered(range(10), 25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert order == fit.ordered(range(10), 25, seed=3) != fit.ordered(range(10), 25, seed=4)


# Budgets


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_budgets_are_met_on_the_real_model(model_type: str, study: Study, tmp_path: Path) -> None:
    """Catches a count on the meta device that the real model does not have, in families with other sizes and layouts."""
    tiny_model(model_type).save_pretrained(tmp_path / model_type)
    for method in MATCHED:
        for rank in (12, 24):
            cell = _cell(study, method, "choices", model=str(tmp_path / model_type), rank=rank)
            built = methods.build(cell, study, TASKS["choices"], 0, torch.device("cpu"))
            wanted = methods.lora_parameters(cell.model) * rank
            assert abs(built.trainable() - wanted) <= 0.05 * wanted, (method, rank, built.config)


def test_whole_backbone_is_kept_where_it_fits_and_shrunk_to_its_share_where_not(tiny: str) -> None:
    """Catches a search that spends everything on one part, or shrinks what fits."""
    for variant, whole in (("paper", 96), ("normed", 96 // 4)):
        roomy, tight = (methods.matched(tiny, "shadow", rank, (("variant", variant),)) for rank in (400, 3))
        assert "shadow_attention_heads" not in roomy
        assert roomy["shadow_intermediate_size"] == whole
        assert tight["shadow_intermediate_size"] < 96 // 4
        assert tight["r"] > 1


def test_given_sizes_stay_as_given(tiny: str) -> None:
    """Catches a search that overrules the user."""
    given = (("shadow_attention_heads", 2), ("shadow_intermediate_size", 24), ("update_width", 3))
    found = methods.matched(tiny, "shadow", 16, given)
    assert dict(given).items() <= found.items()


def test_unmatchable_budget_is_one_sentence_with_the_rank_that_would_do(tiny: str) -> None:
    """Catches a comparison at unequal budgets, and advice that does not work."""
    with pytest.raises(
        ConfigError,
        match=r"peft-shadow cannot be matched .* nearest it comes is [\d,]+, .*; rank \d+ would do",
    ) as caught:
        methods.matched(tiny, "peft-shadow", 1)
    methods.matched(tiny, "peft-shadow", int(str(caught.value).split("rank ")[-1].split()[0]))


def test_match_fills_the_budget_whatever_it_costs() -> None:
    """Catches rounding that leaves more than the tolerance unspent."""
    whole, half = budget.Backbone({}, 4000, 30), budget.Backbone({"heads": 1}, 2000, 30)
    names = {"r": "r", "mlp": "width", "update": "update"}
    costs = budget.Costs(
        names, {}, {"mlp": 200, "update": 10}, (whole, half), per_rank=100, per_update=150, rest=64
    )
    for wanted in (5000, 8000, 20_000, 100_000):
        found = budget.match(wanted, costs)
        assert found.meets(wanted), found
    assert found.settings == {"width": 200, "update": 10, "r": 884}


@pytest.mark.parametrize(
    ("method", "setting"),
    [("lora", "lora_droput"), ("shadow", "drop"), ("full", "r"), ("peft-shadow", "alpha")],
)
def test_unknown_override_is_refused_by_name(method: str, setting: str, study: Study) -> None:
    """Catches a misspelt setting that is silently not applied."""
    wrong = dataclasses.replace(study, methods=method, overrides={method: {setting: 0.1}})
    with pytest.raises(ConfigError, match=f"overrides of {method}: unknown setting '{setting}'"):
        methods.build(_cell(study, method), wrong, TASKS["classes"], 0, torch.device("cpu"))


@pytest.mark.parametrize("method", ["lora", "peft-shadow"])
def test_settings_that_serve_no_study_are_no_overrides(method: str) -> None:
    """Catches a list of settings that a study would record and never use, and one that a study needs left out with them."""
    known = set(methods._known(method))
    assert not known & {
        "base_model_name_or_path",
        "revision",
        "megatron_config",
        "runtime_config",
        "eva_config",
    }
    assert known >= {
        "r",
        "target_modules",
        "modules_to_save",
        *(["lora_alpha", "use_rslora"] if method == "lora" else ["shadow_model"]),
    }


def test_overrides_and_alpha_reach_the_models(study: Study) -> None:
    """Catches settings that are recorded but not used."""
    given = {"lora": {"lora_dropout": 0.5}, "shadow": {"dropout": 0.4, "shadow_layers": 1.0}}
    changed = dataclasses.replace(study, methods="lora,shadow,peft-shadow", overrides=given)
    built = {
        method: methods.build(
            _cell(study, method, alpha=alpha), changed, TASKS["choices"], 0, torch.device("cpu")
        )
        for method, alpha in (("lora", None), ("shadow", 0.7), ("peft-shadow", 0.7))
    }
    ours = built["shadow"].model.adapters["default"].settings
    assert (ours.alpha, ours.dropout, ours.shadow_layers) == (0.7, 0.4, 1)
    assert built["lora"].model.peft_config["default"].lora_dropout == 0.5
    assert built["peft-shadow"].model.peft_config["default"].shadow_alpha == 0.7


def test_sizes_are_counted_once_for_all_trials_and_ranks(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a minute of counting before every run of a search, and an override that is a list."""
    counted = []
    costs = methods._costs
    monkeypatch.setattr(methods, "_costs", lambda counter: counted.append(counter.settings) or costs(counter))
    given = {"lora": {"target_modules": ["q_proj", "v_proj"]}, "shadow": {"dropout": 0.07}}
    changed = dataclasses.replace(study, methods="lora,shadow", ranks="16,24", overrides=given)
    methods.check(changed)
    for alpha in (0.1, 0.7):
        cell = _cell(study, "shadow", alpha=alpha)
        built = methods.build(cell, changed, TASKS["choices"], 0, torch.device("cpu"))
        assert built.config["alpha"] == alpha
    assert counted == [{"dropout": 0.07}]
    lora = methods.build(_cell(study, "lora"), changed, TASKS["choices"], 0, torch.device("cpu"))
    assert {name.split(".")[-4] for name, _ in methods._trained(lora.model)} == {"q_proj", "v_proj"}


# Measurements


@dataclasses.dataclass
class PreTrained:
    """A model folder."""

    folder: str

    def both(self) -> tuple[PreTrainedModel, Any]:
        from shadowpeft.storage import stock_models

        return stock_models.load_model(self.folder, torch.float32).eval(), AutoTokenizer.from_pretrained(
            self.folder
        )


@pytest.mark.parametrize("choices", [(" A", " B", " C"), (" one two", " star", " blue cat dog")])
@torch.inference_mode()
def test_likelihood_of_choices_equals_one_at_a_time(choices: tuple[str, ...], tiny: str) -> None:
    """Catches an offset by one, padding that is attended to, and a short cut that differs from the long way."""
    model, tokenizer = PreTrained(tiny).both()
    items = [Item(f"{_text(i)} Answer:", 0, choices=choices[: 3 - i % 2]) for i in range(5)]
    given = measure.answer(model, tokenizer, TASKS["choices"], items, 2, 64)
    for item, found in zip(items, given.probabilities or [], strict=True):
        scores = []
        for choice in item.choices:
            prompt, ids = (
                tokenizer(item.prompt)["input_ids"],
                tokenizer(choice, add_special_tokens=False)["input_ids"],
            )
            logs = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
            scores.append(sum(logs[len(prompt) - 1 + place, token].item() for place, token in enumerate(ids)))
        assert found == pytest.approx(torch.tensor(scores).softmax(-1).tolist(), abs=1e-5)


@torch.inference_mode()
def test_classes_equal_one_at_a_time(study: Study) -> None:
    """Catches answers that come back in another order, and padding that moves the pooled token."""
    built = methods.build(_cell(study, "lora"), study, TASKS["classes"], 0, torch.device("cpu"))
    model, tokenizer = built.model.eval(), AutoTokenizer.from_pretrained(study.model)
    items = _classes("test", None)
    given = measure.answer(model, tokenizer, TASKS["classes"], items, 3, 16)
    for item, found in zip(items, given.probabilities or [], strict=True):
        assert found == pytest.approx(
            model(**tokenizer(item.prompt, return_tensors="pt")).logits[0].softmax(-1).tolist(), abs=1e-5
        )


def test_answers_end_at_the_first_stop_text(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an answer scored with what the model rambled afterwards, and one that a line break before it empties."""
    model, tokenizer = PreTrained(tiny).both()
    told = ["4\nQuestion: five\n\n", "\n\n 4 \nQuestion", "4", "\n"]
    monkeypatch.setattr(measure, "greedy_answers", lambda *args, **kwargs: told)
    task = dataclasses.replace(TASKS["questions"], stop=("Question", "\n"))
    assert measure.answer(model, tokenizer, task, [Item("What?", "4")] * 4, 4, 64).answers == [
        "4",
        "4",
        "4",
        "",
    ]


def test_prompts_beyond_the_context_are_counted(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches prompts that lose their beginning unnoticed, and an answer without room behind its prompt."""
    long, short = (
        Item("cat " * 200 + "dog", 0, " A", choices=(" A", " star star")),
        Item("cat", 0, " A", choices=(" A", " star star")),
    )
    model, tokenizer = PreTrained(study.model).both()
    end = tokenizer(long.prompt)["input_ids"][-(128 - len(tokenizer(" star star")["input_ids"]) + 1) :]
    given = measure.answer(model, tokenizer, TASKS["choices"], [long, short], 2, 64)
    alone = measure.answer(model, tokenizer, TASKS["choices"], [long], 2, 64, encoded=[end])
    assert (given.cut, alone.cut) == (1, 0)
    assert (given.probabilities or [])[0] == pytest.approx((alone.probabilities or [])[0], abs=1e-5)
    monkeypatch.setitem(
        tasks.TASKS,
        "questions",
        dataclasses.replace(TASKS["questions"], load=lambda split, source: [long, short, long]),
    )
    with pytest.warns(
        UserWarning,
        match=r"questions: 2 of 3 prompts of the test split leave no room for an answer in the context of",
    ):
        (row,) = run_cell.run_cell(_cell(study, "base", "questions"), study)
    assert (row["prompts_cut"], row["items"]) == (2, 3)


def test_calibration_of_known_probabilities() -> None:
    """Catches bins that are off by one, a confidence of 1 without a bin, and an error that is not weighted by size."""
    sure = [[1.0, 0.0], [0.95, 0.05], [0.45, 0.55], [0.6, 0.4]]
    found = measure.calibration(sure, [1, 0, 1, 0])
    assert [entry[0] for entry in found["bins"]] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    assert found["bins"][9][1:] == [pytest.approx(0.975), 0.5]
    assert found["ece"] == pytest.approx((2 * 0.475 + 0.45 + 0.6) / 4)


@pytest.mark.parametrize("task", ["choices", "classes"])
@pytest.mark.parametrize("method", ["base", "lora", "dora", "shadow", "peft-shadow"])
def test_untrained_forgets_nothing_and_perturbed_something(method: str, task: str, study: Study) -> None:
    """Catches a forgetting that measures another head, other text or other precision than the base's loss."""
    reference = run_cell._reference(study.model, study.data_dir, 3, False, 4, torch.device("cpu"))
    built = methods.build(_cell(study, method, task), study, TASKS[task], 0, torch.device("cpu"))
    built.model.eval()
    slack = 1e-5 if method == "dora" else 0.0  # it multiplies by a norm that it divides by
    assert abs(reference.forgetting(built)) <= slack
    if method != "base":
        perturb(built.model)
        assert abs(reference.forgetting(built)) > 1e-3


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "gpt2", "opt", "bloom"])
@torch.inference_mode()
def test_last_hidden_state_is_what_the_head_reads(model_type: str) -> None:
    """Catches a state from before the final norm, which some families' outputs hold."""
    ids = torch.arange(3, 21).view(2, 9)
    base = tiny_model(model_type)
    shadowed = perturb(attach(tiny_model(model_type)))
    for model, stock in ((base, base), (shadowed, shadowed.base)):
        hidden = measure.last_hidden(model, ids, torch.ones_like(ids), causal=True)
        assert torch.equal(arch.logits(stock, hidden), model(ids, use_cache=False).logits)


def test_long_texts_are_cut_and_long_prompts_dropped(tiny: str) -> None:
    """Catches answers that are cut off, on which a model would learn to stop early, and a text without tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    long, short = Item("cat " * 50, 1, " dog"), Item("cat", 0, " dog")
    (kept,) = fit.encode_items(TASKS["questions"], [long, short], tokenizer, 16)
    assert kept["input_ids"][-1] == kept["labels"][-1] == tokenizer.eos_token_id
    texts = fit.encode_items(TASKS["classes"], [long, short, Item("", 2)], tokenizer, 16)
    assert [len(text["input_ids"]) for text in texts] == [16, len(tokenizer("cat")["input_ids"]), 1]
