"""The search for a better method: its changes, its rates, the jobs it plans and the figures it reports."""

import json

import numpy as np
import pytest
import torch
from helpers.method_search import (
    change,
    frozen_sibling,
    frozen_sibling_report,
    head_rate,
    head_rate_report,
    kept,
    measurements,
    mixed_answers,
    rates,
    search,
)
from helpers.recipes import ROOT, run
from transformers import AutoModelForSequenceClassification, Gemma3TextConfig, Qwen2Config

from shadowpeft import ShadowConfig, attach
from shadowpeft.compare import run_cell, tasks, training
from shadowpeft.compare.examples import ClassCollator
from shadowpeft.compare.methods import Built
from shadowpeft.compare.peft_methods import peft_config, peft_model
from shadowpeft.embedded import MODEL

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_labels": 5,
    "pad_token_id": 0,
}
CONFIGS = {"gemma": Gemma3TextConfig, "qwen": Qwen2Config}
ROWS = [{"input_ids": [3, 4, 5 + i], "labels": i % 5} for i in range(8)]
HEAD_RATE, STATE = ROOT / "results/quality/head_rate", ROOT / "results/method/shadow_state"


def base_of(kind):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[kind](**SIZES))


def shadow_of(kind):
    base = base_of(kind)
    return Built(attach(base, ShadowConfig(r=6)), base)


def lora_of(kind):
    base = base_of(kind)
    return Built(peft_model(base, peft_config("lora", {"r": 4}, classifies=True)), base)


def train(model, steps, rate):
    settings = training.Training(
        steps=steps, batch_size=4, learning_rate=rate, seed=0, device=torch.device("cpu")
    )
    training.train(model, ROWS, ClassCollator(0), settings)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("build", [lora_of, shadow_of])
def test_the_head_alone_gets_its_own_rate(kind, build, monkeypatch):
    model = build(kind).model
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_rate = {}
    plain = training._Trainer.create_scheduler

    def look(self, *args, **kwargs):
        scheduler = plain(self, *args, **kwargs)
        # Weights with decay and without are in groups of their own.
        for group in self.optimizer.param_groups:
            named = [names[id(weight)] for weight in group["params"]]
            by_rate.setdefault(round(group["initial_lr"], 6), []).extend(named)
        return scheduler

    monkeypatch.setattr(training._Trainer, "create_scheduler", look)
    with rates.rates({"head": 6.0}) as used:
        train(model, steps=2, rate=5e-4)
    assert set(by_rate) == {5e-4, 3e-3}
    assert by_rate[3e-3]
    assert all("score" in name for name in by_rate[3e-3])
    assert not any("score" in name for name in by_rate[5e-4])
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert sorted(trained) == sorted(by_rate[5e-4] + by_rate[3e-3])
    assert used == {"0.0005": used["0.0005"], "0.003": 5 * 32 * (2 if build is shadow_of else 1)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mean_start_puts_out_the_mean(kind):
    built = change.change_adapter(shadow_of(kind), change.Change(backbone="mean"))
    attention = built.model.adapters["default"].shadow.backbone.layers[0].self_attn
    read, out = [], []
    attention.v_proj.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    attention.register_forward_hook(lambda _, __, given: out.append(given[0]))
    ids = torch.randint(1, 50, (2, 7))
    built.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    mean_BTD = read[0].cumsum(1) / torch.arange(1, 8)[:, None]
    values_ED = attention.v_proj.weight
    torch.testing.assert_close(out[0], mean_BTD @ values_ED.T @ values_ED, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values_ED @ values_ED.T, torch.eye(len(values_ED)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_mean_start_can_be_trained(kind):
    built = change.change_adapter(shadow_of(kind), change.Change(backbone="mean"))
    attention = built.model.adapters["default"].shadow.backbone.layers[0].self_attn
    start = attention.q_norm.weight if kind == "gemma" else attention.q_proj.weight
    before = start.detach().clone()
    train(built.model, steps=3, rate=1e-2)
    assert (start - before).abs().max() > 0


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_whole_budget_goes_to_r(kind):
    plain = shadow_of(kind)
    changed = change.change_adapter(shadow_of(kind), change.Change(reads_shadow=False, whole=True))
    one_of_r = 2 * 32 * len(changed.model.adapters["default"].injections)
    assert abs(changed.trainable() - plain.trainable()) <= one_of_r / 2
    trained = {name for name, weight in changed.model.named_parameters() if weight.requires_grad}
    assert all(".injections." in name or "score." in name for name in trained)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_blind_boundary_does_not_read_the_shadow(kind):
    ids = torch.randint(1, 50, (2, 7))
    answers = {}
    for reads in (False, True):
        for added in (0.0, 2.0):
            built = change.change_adapter(shadow_of(kind), change.Change(reads_shadow=reads))
            adapter = built.model.adapters["default"]
            generator = torch.Generator().manual_seed(0)
            for injection in adapter.injections:
                injection.up.weight.data.normal_(std=0.1, generator=generator)
                injection.down.weight.data.normal_(std=0.2, generator=generator)
            adapter.score.weight.data.normal_(generator=generator)
            adapter.shadow.backbone.norm.weight.data.add_(added)
            answers[reads, added] = built.model.eval()(
                input_ids=ids, attention_mask=torch.ones_like(ids)
            ).logits
    torch.testing.assert_close(answers[False, 0.0], answers[False, 2.0])
    assert (answers[True, 0.0] - answers[True, 2.0]).abs().max() > 1e-3


def test_rows_are_encoded_once_wherever_the_data_lies(tmp_path, monkeypatch):
    """Catches a process that encodes again what is kept, and one that reads what another call made."""
    made = []

    def examples_of(model, task, split, *, data_dir, limit, max_length):
        made.append(limit)
        return [limit] * 2

    monkeypatch.setattr(run_cell, "questions_of", run_cell.questions_of)
    task = tasks.find("clinc150")
    for folder in ("here", "there"):
        monkeypatch.setattr(run_cell, "examples_of", examples_of)
        kept.keep_encoded(tmp_path)
        for limit in (3, 4, 3):
            rows = run_cell.examples_of("m", task, "train", data_dir=folder, limit=limit, max_length=8)
            assert rows == [limit] * 2
    assert made == [3, 4]


@pytest.mark.slow
def test_a_search_keeps_data_and_answers(tmp_path):
    """Catches kept rows that are read by no run, and kept answers that are not those that were scored."""
    run("compare/smoke_data.py", tmp_path / "data")
    job = {"task": "clinc150", "model": str(MODEL), "learning_rate": 1e-3, "detached": True, "seed": 7}
    jobs = [
        {**job, "name": "lora", "method": "lora", "rates": {"head": 3.0}},
        {**job, "name": "whole", "change": {"reads_shadow": False, "whole": True}},
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in jobs), encoding="utf-8")
    words = []
    for flag, name in (
        ("jobs", "jobs.jsonl"),
        ("output", "rows.jsonl"),
        ("encoded", "kept"),
        ("answers", "said"),
    ):
        words += [f"--{flag}", tmp_path / name]
    small = ("--steps", 2, "--batch-size", 2, "--max-length", 32, "--validation-rows", 10, "--device", "cpu")
    run("method_search/search.py", *words, "--data-dir", tmp_path / "data", *small)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["error"] for row in rows] == [None, None]
    assert [row["job"] for row in rows] == jobs
    assert len(list((tmp_path / "kept").iterdir())) == 2  # training rows and questions, for both runs
    assert [set(row["rates_used"]) for row in rows] == [{"0.001", "0.003"}, {"0.001"}]
    for row in rows:
        with np.load(tmp_path / "said" / f"{row['name']}.npz") as said:
            for i, measured in enumerate([row, *row["also"]]):
                nll, right = mixed_answers.scores(said[f"log{i}"].astype(float), said["target"].astype(int))
                assert nll.mean() == pytest.approx(measured["metrics"]["nll"], rel=2e-3)
                assert "".join(str(int(one)) for one in right) == measured["correct"]


def test_a_job_is_run_once_and_none_after_the_time(tmp_path):
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"name": "a"}\n\n{"name": "b"}\n{"name": "a"}\n', encoding="utf-8")
    assert [job["name"] for job in search.unclaimed(jobs, tmp_path / "claims")] == ["a", "b"]
    assert list(search.unclaimed(jobs, tmp_path / "claims")) == []
    assert list(search.unclaimed(jobs, tmp_path / "other", until=0.0)) == []


def planned(rows):
    return dict(head_rate.stages(head_rate.Measured(rows)))


def row_of(job, nll):
    return {"job": job, "metrics": {"nll": nll}}


def test_the_plan_goes_on_as_far_as_the_rows_allow():
    """Catches a stage that begins before those it depends on, and rounds that leave the best."""
    assert list(planned([])) == ["grid", "coupled"]
    jobs = planned([])["grid"]
    assert len(jobs) == 6 * (2 + 12)
    # The best settings are at the edge of the grid, the diverged runs are not numbers.
    rows = [
        row_of(job, 1.0 if job["name"] in ("lora 0.0003/0.003", "shadow 0.002/0.01") else float("nan"))
        for job in jobs
    ]
    found = planned(rows)
    assert list(found) == ["grid", "coupled", "round 1", "gsm8k 1"]
    new = dict.fromkeys(job["name"] for job in found["round 1"])
    assert list(new) == ["lora 0.0003/0.001", "lora 0.0002/0.003", "shadow 0.002/0.03", "shadow 0.003/0.01"]


def test_the_planner_adds_each_job_once_when_its_model_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jobs, rows = tmp_path / "jobs.jsonl", tmp_path / "rows.0.jsonl"
    (tmp_path / head_rate.MODELS[1]).mkdir(parents=True)
    (tmp_path / head_rate.MODELS[1] / "READY").touch()
    rows.write_text('{"job": ', encoding="utf-8")  # a row that is still being written
    for _ in range(2):
        head_rate.add(jobs, "rows.*.jsonl", any_model=False)
        there = [json.loads(line) for line in jobs.read_text(encoding="utf-8").splitlines()]
        assert {job["model"] for job in there} == {head_rate.MODELS[1]}
        assert len(there) == 3 * (14 + 4)


def test_the_plan_of_the_record_is_the_one_that_ran():
    """Catches a planner that no longer makes the jobs of the committed rows."""
    folders = (HEAD_RATE, STATE)
    rows = [
        json.loads(line)
        for folder in folders
        for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    wanted = [json.dumps(job) for jobs in planned(rows).values() for job in jobs]
    assert sorted(wanted) == sorted(json.dumps(row["job"]) for row in rows)


def test_differences_are_summarised_by_pairs_and_seeds():
    found = measurements.compared(np.array([[1.0, 3.0], [-1.0, -1.0], [4.0, 0.0]]))
    assert (found.mean, found.lower, found.runs) == (1.0, 2, 6)
    assert found.over_seeds == pytest.approx((1.0 + 0.0 + 4.0) ** 0.5 / 3)
    assert found.over_pairs == pytest.approx(np.std([2.0, -1.0, 2.0], ddof=1) / 3**0.5)


def test_the_report_computes_what_the_pages_say(monkeypatch, capsys):
    """Catches a page whose tables are not those of its rows."""
    files = [HEAD_RATE / "rows.jsonl", HEAD_RATE / "extra.jsonl", STATE / "rows.jsonl"]
    monkeypatch.setattr("sys.argv", ["head_rate_report.py", *map(str, files)])
    head_rate_report.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    pages = (HEAD_RATE / "details.md").read_text(encoding="utf-8") + (STATE / "details.md").read_text(
        encoding="utf-8"
    )
    missing = [line for line in printed if not line.startswith("| ---") and line not in pages]
    assert len(printed) > 80
    assert missing == []


def sibling_rows(jobs):
    """Rows of runs of the comparison: the higher the rate, the worse."""
    sizes = {"lora": 1000, "shadow-frozen": 1004}
    return [
        {
            "job": one,
            "name": str(at),
            "status": "ok",
            "error": None,
            "task": one["task"],
            "metrics": {
                "loss" if one["task"] == "gsm8k" else "nll": one["learning_rate"],
                "exact_match" if one["task"] == "gsm8k" else "accuracy": 0.5,
            },
            "trainable": sizes.get(one["method"], 10),
            "correct": "01",
            "train_seconds": 2.0,
            "peak_gb": None,
        }
        for at, one in enumerate(jobs)
    ]


def test_the_siblings_jobs_follow_the_rows(tmp_path):
    """Catches a second seed before the settings are chosen, unequal numbers of settings, an edge that nobody
    looks beyond, and a job that begins before its models have come."""
    first = frozen_sibling.plan(frozen_sibling.Measured([]))
    tried = [one for one in first if one["name"].split()[0] in frozen_sibling.TRIED and one["seed"] == 1000]
    assert first[: len(tried)] == tried
    assert [sum(one["method"] == method for one in tried) for method in ("lora", "shadow-frozen")] == [12, 12]
    assert {one["seed"] for one in first if one["name"].startswith(("lora", "frozen"))} == {1000}
    assert not any("rates" in one for one in first if one["task"] == "gsm8k")
    then = frozen_sibling.plan(frozen_sibling.Measured(sibling_rows(tried)))
    again = [one["name"] for one in then if one["seed"] == 1001 and one["task"] == "gsm8k"]
    assert again[:2] == ["lora 0.0002/0.003", "frozen 0.0005/0.003"]
    assert {"lora 0.0001/0.003", "frozen 0.00025/0.003"} <= {one["name"] for one in then}
    assert len({json.dumps(one) for one in then}) == len(then)
    jobs = tmp_path / "jobs.jsonl"
    frozen_sibling.write(jobs, str(tmp_path / "none"), any_model=False)
    assert jobs.read_text(encoding="utf-8") == ""


def test_the_siblings_report_refuses_another_size():
    """Catches a comparison at unequal numbers of trained parameters, and a report that one row stops."""
    jobs = frozen_sibling.plan(frozen_sibling.Measured([]))
    rows = sibling_rows(jobs)
    said = frozen_sibling_report.report(frozen_sibling_report.Rows(rows), None)
    assert "frozen 1,004, lora 1,000" in said
    assert "| frozen 0.0005/0.003 - lora 0.0002/0.003 | gsm8k | 1000 | +0.0003 | +0.00 |" in said
    assert "| frozen - lora | gsm8k | all | +0.00 | +0.00 to +0.00 |  | +0.0003 | 0 of 1 | 1000 |" in said
    frozen_sibling_report.report(frozen_sibling_report.Rows(rows[:1]), None)
    for row in rows:
        row["trainable"] += 20 * (row["job"]["method"] == "shadow-frozen")
    with pytest.raises(SystemExit, match="frozen trains 1,024 parameters, LoRA 1,000"):
        frozen_sibling_report.report(frozen_sibling_report.Rows(rows), None)
