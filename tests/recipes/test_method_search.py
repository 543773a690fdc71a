"""The search for a better method: its changes, its rates, the jobs it plans and the figures it reports."""

import json
import sys

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
    paired_runs,
    planning,
    rates,
    search,
    step_times,
    steps,
    steps_report,
)
from helpers.recipes import ROOT, run
from helpers.tiny import save_broken_tokenizer
from transformers import AutoModelForSequenceClassification, Gemma3TextConfig, Qwen2Config

from shadowpeft import ShadowConfig, attach
from shadowpeft.compare import measure, run_cell, tasks, training
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
STEPS = ROOT / "results/quality/steps"
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
def test_a_search_keeps_data_and_answers(tmp_path, monkeypatch):
    """Catches kept rows that are read by no run, and kept answers that are not those that were scored."""
    for name in ("examples_of", "questions_of"):  # which the recipe replaces
        monkeypatch.setattr(run_cell, name, getattr(run_cell, name))
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_study_for_a_gpu_is_not_run_on_the_processor(tmp_path, monkeypatch, capsys):
    """Catches a study that goes on for hours where its GPU is hidden."""
    words = ["--jobs", str(tmp_path / "jobs.jsonl"), "--output", str(tmp_path / "rows.jsonl"), "--bf16"]
    monkeypatch.setattr(sys, "argv", ["search.py", *words])
    with pytest.raises(SystemExit):
        search.main()
    assert "torch finds none" in capsys.readouterr().err


def test_a_tokenizer_that_was_converted_wrongly_ends_a_search(tmp_path):
    """Catches runs that read single signs: their losses look like losses."""
    run("compare/smoke_data.py", tmp_path / "data")
    save_broken_tokenizer(tmp_path / "broken")
    search.refuse_wrong_tokens(str(MODEL), "clinc150", str(tmp_path / "data"))
    with pytest.raises(SystemExit, match=r"the tokenizer of .*broken makes .* it was converted wrongly"):
        search.refuse_wrong_tokens(str(tmp_path / "broken"), "clinc150", str(tmp_path / "data"))


def test_a_job_is_run_once_and_none_after_the_time(tmp_path):
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"name": "a"}\n\n{"name": "b"}\n{"name": "a"}\n', encoding="utf-8")
    assert [job["name"] for job in search.unclaimed(jobs, tmp_path / "claims")] == ["a", "b"]
    assert list(search.unclaimed(jobs, tmp_path / "claims")) == []
    assert list(search.unclaimed(jobs, tmp_path / "other", until=0.0)) == []


def planned(rows):
    return dict(head_rate.stages(head_rate.Measured(rows)))


def row_of(job, nll):
    return {"job": job, "status": "ok", "error": None, "metrics": {"nll": nll}}


def test_the_plan_goes_on_as_far_as_the_rows_allow():
    """Catches a stage that begins before those it depends on, and rounds that leave the best."""
    assert list(planned([])) == ["grid", "coupled"]
    jobs = planned([])["grid"]
    assert len(jobs) == 6 * (2 + 12)
    # The best settings are at the edge of the grid, all others diverged.
    rows = [
        row_of(job, 1.0) if job["name"] in ("lora 0.0003/0.003", "shadow 0.002/0.01") else diverged(job)
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
    given = planning.command_line(None).parse_args(["--rows", "rows.*.jsonl", "--jobs", str(jobs)])
    for _ in range(2):
        head_rate.add(given)
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
    words = ["--rows", str(tmp_path / "none"), "--jobs", str(jobs)]
    frozen_sibling.write(planning.command_line(None).parse_args(words))
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


def diverged(one):
    """The row of a run whose model computes no numbers."""
    return {"job": one, "status": "crashed", "error": f"UserError: {measure._DIVERGED} (x.py:1: y)"}


def out_of_memory(one):
    return {"job": one, "status": "out-of-memory", "error": "no room", "metrics": {}}


def steps_row(one, lost):
    metric = "loss" if one["task"] == "gsm8k" else "nll"
    return {
        "job": one,
        "status": "ok",
        "error": None,
        "metrics": {metric: lost},
        "train_seconds": 100.0,
    }


def test_a_run_out_of_memory_is_tried_again_and_is_not_one_that_diverged():
    """Catches a lost run that counts as the worst, or for ever keeps others back, and endless tries."""
    jobs = steps.plan(steps.Measured([]))
    one = next(job for job in jobs if job["task"] == "gsm8k" and job["study"]["steps"] == 600)
    failed = out_of_memory(one)
    for failures, tries in ((1, 2), (2, 3), (5, 3)):
        measured = steps.Measured([failed] * failures)
        again = [job for job in steps.plan(measured) if planning.key_of(job) == planning.key_of(one)]
        assert again == [one, *({**one, "again": at} for at in range(1, tries))]
        assert planning.key_of(one) not in measured.lost
    pair = one["model"], "gsm8k"
    both = [job for job in jobs if (job["model"], job["task"]) == pair and job["study"]["steps"] == 600]
    lora = [job for job in both if job["method"] == "lora"]
    rows = [diverged(lora[0]), steps_row(lora[1], 0.8)]
    assert steps.Measured([failed, rows[1]]).best("lora", 600, pair) is None
    found = steps.Measured([failed, *rows]).best("lora", 600, pair)
    assert found.name("gsm8k") == lora[1]["name"]


def test_no_planner_takes_a_run_out_of_memory_for_one_that_diverged():
    """Catches a planner that goes on without a lost run, chooses by it, or tries it for ever."""
    jobs = planned([])["grid"]
    rows = [row_of(job, 1.0) for job in jobs[1:]]
    assert "round 1" not in planned([*rows, out_of_memory(jobs[0])])
    assert "round 1" in planned([*rows, *[out_of_memory(jobs[0])] * 3])
    assert "round 1" in planned([*rows, diverged(jobs[0])])
    tried = [
        one
        for one in frozen_sibling.plan(frozen_sibling.Measured([]))
        if one["name"].split()[0] in frozen_sibling.TRIED
    ]
    first = tried[0]["name"]
    rows = [row_of(one, float(one["name"] != first)) for one in tried[1:]]
    best = {
        what: frozen_sibling.Measured([*rows, row]).best("lora", frozen_sibling.CLASSIFIED)
        for what, row in (("lost", out_of_memory(tried[0])), ("diverged", diverged(tried[0])))
    }
    assert best["lost"] is None
    assert best["diverged"].name != first


def test_a_failed_run_of_any_planner_is_tried_again(tmp_path):
    """Catches a planner that never writes a failed job anew."""
    for update in (head_rate.add, frozen_sibling.write):
        jobs, rows = tmp_path / f"{update.__module__}.jobs", tmp_path / f"{update.__module__}.rows"
        words = ["--rows", str(rows), "--jobs", str(jobs), "--any-model"]
        given = planning.command_line(None).parse_args(words)
        update(given)
        first = json.loads(jobs.read_text(encoding="utf-8").splitlines()[0])
        rows.write_text(json.dumps(out_of_memory(first)) + "\n", encoding="utf-8")
        update(given)
        assert json.dumps({**first, "again": 1}) in jobs.read_text(encoding="utf-8").splitlines()


def test_the_second_seed_follows_the_choice_and_no_run_begins_too_late():
    """Catches methods with unequal numbers of settings, a second seed that is not of the chosen one, and a
    run that would not end in time."""
    jobs = steps.plan(steps.Measured([]))
    for task in steps.TASKS:
        for length in (50, 150, 600):
            of = [job for job in jobs if job["task"] == task and job["study"]["steps"] == length]
            lora, shadow = ([job for job in of if job["method"] == method] for method in steps.METHODS)
            assert len(lora) == len(shadow) > 0
    rows = [steps_row(job, job["learning_rate"]) for job in jobs if job["seed"] == steps.FIRST]
    then = steps.plan(steps.Measured(rows))
    second = {job["name"] for job in then if job["seed"] != steps.FIRST and job["study"]["steps"] == 50}
    assert second == {"lora 0.0003/0.003 50", "shadow 0.001/0.003 50", "lora 0.001 50", "shadow 0.002 50"}
    measured = steps.Measured(rows[:1])
    longest = next(job for job in jobs if job["study"]["steps"] == 2000 and job["method"] == "lora")
    seconds = measured.seconds(longest)
    assert planning.fits(longest, measured, seconds + 1, 0.0)
    assert not planning.fits(longest, steps.Measured([]), seconds - 1, 0.0)


def test_the_rows_on_length_are_of_the_jobs_that_were_planned():
    """Catches a planner that no longer makes the jobs of the committed rows."""
    rows = steps_report.read_rows(STEPS / "rows.jsonl")
    planned_jobs = [json.dumps(job) for job in steps.plan(steps.Measured(rows))]
    assert [row for row in rows if json.dumps(row["job"]) not in planned_jobs] == []


def test_the_report_on_length_computes_what_its_page_says():
    """Catches a page whose tables are not those of its rows."""
    rows = steps_report.Rows(
        steps_report.read_rows(STEPS / "rows.jsonl"), steps_report.read_rows(HEAD_RATE / "rows.jsonl")
    )
    times = steps_report.Times(steps_report.read_rows(STEPS / "times.jsonl"))
    page = (STEPS / "details.md").read_text(encoding="utf-8")
    lines = [line for line in steps_report.report(rows, times).splitlines() if line[:2] in ("| ", "- ")]
    assert len(lines) > 90
    assert [line for line in lines if not line.startswith("| ---") and line not in page] == []


def test_a_curve_is_read_between_its_lengths_and_not_beyond():
    found = {50: (2.0, 10.0), 150: (1.0, 20.0), 600: (0.5, 26.0)}
    for degree in (1, 2):
        loss, points = steps_report.after(found, seconds_a_step=0.1, seconds=15.0, degree=degree)
        assert (loss, points) == pytest.approx((1.0, 20.0))
        assert steps_report.after(found, 0.1, 4.9, degree) is None
        assert steps_report.after(found, 0.1, 61.0, degree) is None
    # The middle of a step's logarithm.
    between = steps_report.after(found, 0.1, (15.0 * 60.0) ** 0.5)
    assert between == pytest.approx((0.75, 23.0))


def test_unequal_sizes_are_refused_on_length():
    rows = steps_report.read_rows(STEPS / "rows.jsonl")
    for row in rows:
        row["trainable"] += 90_000 * (row["job"]["method"] == "shadow")
    with pytest.raises(SystemExit, match="the shadow trains 3,881,232 parameters, LoRA 3,796,992"):
        paired_runs.refuse_unequal(steps_report.Rows(rows).by_key.values())


def test_a_step_is_timed_with_either_loss(tmp_path, monkeypatch):
    """Catches a loss without logits that is another loss."""
    task = tasks.find("gsm8k")
    ids = [[3, 4, 5 + i] for i in range(6)]
    examples = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]
    monkeypatch.setattr(run_cell, "examples_of", lambda *args, **named: examples)
    settings = {"model": str(MODEL), "device": "cpu", "batch_size": 2, "max_length": 16}
    rows = [
        step_times.time_one(task.name, method, (1, 2), settings)
        for method in step_times.methods_of(task.name)
    ]
    assert [row["method"] for row in rows] == ["lora", "lora-chunked", "shadow"]
    assert all(row["status"] == "ok" and row["value"] > 0 for row in rows)
    assert rows[0]["train_loss"] == pytest.approx(rows[1]["train_loss"], rel=1e-6)
    assert step_times.methods_of("clinc150") == ("lora", "shadow")
