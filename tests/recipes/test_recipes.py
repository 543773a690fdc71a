"""Every recipe is run, small. Those of pretrained shadows and of warm starts have files of their own."""

import gzip
import importlib
import json
import runpy
from types import SimpleNamespace

import pytest
import torch
from helpers.families import attached, tiny_model
from helpers.recipes import ROOT, run, write_rows
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft import ShadowConfig, embedded
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.shadow.adapter import Adapter


@pytest.mark.parametrize(
    "script",
    [
        "draft_cpu/measure.py",
        "gsm8k/verify.py",
        "inject_from/measure.py",
        "method_search/search.py",
        "portability/measure.py",
        "portability/report.py",
    ],
)
def test_a_recipe_that_is_marked_recipe_loads_and_tells_its_flags(script):
    """Catches an import that no longer works, which only `make test-recipes` would notice otherwise."""
    with pytest.raises(SystemExit) as ended:
        run(script, "--help")
    assert ended.value.code == 0


@pytest.mark.slow
def test_recipe_of_the_embedded_model(tmp_path):
    """Catches a recipe that no longer runs: tokenizer, shards, training, card."""
    text = (
        "The river runs past the old town, and people said that it never sleeps. "
        '"Where are you going?" asked Ann. '
    )
    for source in ("wiki", "novels"):
        rows = [
            {"id": i, "title": f"Title {i}", "author": "A", "year": 1900, "text": text * 60}
            for i in range(12)
        ]
        write_rows(tmp_path / source / "train.jsonl.gz", rows)
        write_rows(tmp_path / source / "validation.jsonl", rows[:4])
    dolly = [
        {
            "instruction": f"Where is river {i}?",
            "context": "",
            "response": text,
            "category": "open_qa",
            "part": "x",
        }
        for i in range(200)
    ]
    write_rows(tmp_path / "dolly" / "train.jsonl.gz", dolly)
    folders = [word for name in ("wiki", "novels", "dolly") for word in (f"--{name}", tmp_path / name)]
    run("embedded_model/prepare.py", *folders, "--output", tmp_path / "tokens")
    small = ("--batch", 2, "--length", 64, "--no-compile", "--minutes", 0.08, "--report-seconds", 0.5)
    run("embedded_model/train.py", "--data", tmp_path / "tokens", "--output", tmp_path / "model", *small)
    run("embedded_model/card.py", tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.model_type == "qwen3"
    assert "perplexity" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_recipe_of_the_demo_settings(tmp_path):
    run("demo_settings/search.py", "--output", tmp_path, "--rows", 16, "--limit", 1, "--epochs", 1)
    (record,) = map(json.loads, (tmp_path / "search-0.jsonl").read_text(encoding="utf-8").splitlines())
    assert 0 <= record["accuracy"] <= 1


@pytest.mark.slow
def test_recipe_of_a_step_of_the_demo():
    run("demo_settings/step_time.py")


@pytest.mark.recipe
def test_recipe_of_the_method_search(tmp_path):
    """Catches a search that no longer runs, and changes of the boundary that change nothing."""
    run("compare/smoke_data.py", tmp_path / "data")
    job = {
        "name": "plain",
        "task": "clinc150",
        "learning_rate": 3e-3,
        "alpha": 2.0,
        "config": {"variant": "normed"},
    }
    named = {
        "activation": "none",
        "gate_shift": 0.0,
        "updates": False,
        "reads_shadow": False,
        "scale": "rms",
        "by_rank": True,
        "warm": True,
        "diagonal": True,
        "site": "both",
        "apart": True,
        "last": True,
        "down": 2.0,
        "shared": True,
        "strength": True,
        "whole": True,
        "backbone": "mean",
    }
    starts = [{"start": name} for name in ("reads", "pca", "mirror")]
    changes = [
        {},
        *({name: value} for name, value in named.items()),
        {"activation": "glu"},
        {"keeps": False},
        {"scale": "root"},
        *starts,
    ]
    jobs = [{**job, "change": change} for change in changes] + [{**job, "loss_weights": [4.0, 0.0]}]
    jobs += [{**job, "config": {"variant": "normed", "shadow_distil": share}} for share in (0.5, 1.0)]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in jobs), encoding="utf-8")
    words = (
        "--model",
        MODEL,
        "--jobs",
        tmp_path / "jobs.jsonl",
        "--output",
        tmp_path / "rows.jsonl",
        "--data-dir",
        tmp_path / "data",
    )
    few = ("--steps", 3, "--batch-size", 2, "--max-length", 32, "--validation-rows", 10)
    run("method_search/search.py", *words, "--device", "cpu", *few)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["metrics"]["nll"] for row in rows}) == len(jobs)


@pytest.mark.slow
def test_a_search_tells_both_losses_of_a_language_model(tmp_path):
    """Catches a detached model read through the attached one's head, or whose loss is the attached one's."""
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(800)
    ]
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    for split, half in (("train", rows[:400]), ("test", rows[400:])):
        write_rows(tmp_path / "data" / "gsm8k" / f"{split}.jsonl", half)
    job = {"name": "plain", "task": "gsm8k", "learning_rate": 1e-9, "detached": True}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job) + "\n", encoding="utf-8")
    words = (
        "--model",
        MODEL,
        "--jobs",
        tmp_path / "jobs.jsonl",
        "--output",
        tmp_path / "rows.jsonl",
        "--data-dir",
        tmp_path / "data",
    )
    run(
        "method_search/search.py",
        *words,
        "--device",
        "cpu",
        "--steps",
        1,
        "--batch-size",
        2,
        "--validation-rows",
        4,
    )
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    attached, detached = row["metrics"]["loss"], row["also"][0]["metrics"]["loss"]
    assert attached < 6 < detached  # a base that knows words, and a fresh shadow that knows none


def test_recipe_of_the_large_base(tmp_path):
    """Catches a mixture without one of its sources, or with unequal shares."""
    write_rows(
        tmp_path / "gsm8k.jsonl", [{"question": f"How many is {i}?", "answer": "#### 1"} for i in range(50)]
    )
    with gzip.open(tmp_path / "wiki.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"Town {i} is a town."}) + "\n" for i in range(1000))
    run(
        "large_base/mix.py",
        "--gsm8k",
        tmp_path / "gsm8k.jsonl",
        "--wiki",
        tmp_path / "wiki.jsonl.gz",
        "--output",
        tmp_path / "mix.jsonl",
    )
    texts = [
        json.loads(line)["text"] for line in (tmp_path / "mix.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    sums, pages = ([text for text in texts if text.startswith(word)] for word in ("How", "Town"))
    assert len(sums) == 100
    assert len(sums) + len(pages) == len(texts)
    assert 0 <= sum(map(len, pages)) - sum(map(len, sums)) < 40


@pytest.mark.slow
def test_recipe_of_the_scales(tmp_path):
    """Catches a recipe that no longer runs, and a record that no longer tells of the model that ships."""
    words = ("--text", ROOT / "LICENSE", "--tokens", 512, "--plot", tmp_path / "scales.png")
    (found,) = json.loads(run("scales/measure.py", MODEL, *words))["models"]
    assert (tmp_path / "scales.png").stat().st_size > 10_000
    recorded = json.loads(
        (ROOT / "results" / "method" / "scales" / "scales.json").read_text(encoding="utf-8")
    )["models"][-1]
    assert found["tokens"] == recorded["tokens"] == 512
    for block, expected in zip(found["blocks"], recorded["blocks"], strict=True):
        assert block == pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_recipe_of_the_kernels(tmp_path):
    run(
        "kernels/boundary.py",
        "--rows",
        5,
        "--width",
        24,
        "--impls",
        "reference",
        "--output",
        tmp_path / "rows.jsonl",
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["what"], row["impl"], row["width"]) for row in rows] == [
        ("forward", "reference", 24), ("forward and backward", "reference", 24)
    ]  # fmt: skip
    assert all(row["us"] > 0 for row in rows)


def test_recipe_of_a_few_rows(monkeypatch):
    """Catches a way that is not the one of its name, and one that is timed though it is wrong."""
    monkeypatch.syspath_prepend(ROOT / "recipes" / "kernels")
    recipe = importlib.import_module("decode_boundary")
    ran = []

    def graphed(sets):
        recipe.forward(recipe.op.boundary, sets[0], recipe.RULE)
        return lambda: 1.0 + len(ran)

    def watched(module, name):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: ran.append(name) or run(*given))

    monkeypatch.setattr(recipe.op.few, "cross", lambda *given: None)  # the long way is watched
    watched(recipe.launch_few, "_run_cross")
    watched(recipe.launch_few, "_run_strips")
    watched(recipe.op._Boundary, "apply")
    monkeypatch.setattr(recipe, "graphed", graphed)
    for tiles in ("ONE", "STRIPS", "BATCH"):
        monkeypatch.setattr(recipe, tiles, getattr(recipe, tiles)[:1])
    rows = list(recipe.measured(2, 32, "cpu"))
    assert sorted(row["way"] for row in rows) == ["batch", "one kernel", "strips", "strips, early"]
    assert ran == ["_run_cross"] * 2 + ["_run_strips"] * 4 + ["apply"] * 2
    assert [row["best"] for row in rows] == [True, False, False, False]
    alone = recipe.op._rows
    monkeypatch.setattr(recipe.op, "_rows", lambda *given: [2 * part for part in alone(*given)])
    *wrong, right = recipe.measured(2, 32, "cpu")
    assert all("failed" in row for row in wrong)
    assert "failed" not in right


def test_kernels_of_a_profile_are_a_step_s(monkeypatch):
    """Catches sums over all steps, and a kernel of the host that is counted."""
    monkeypatch.syspath_prepend(ROOT / "recipes" / "bench")
    kernel_times = importlib.import_module("kernel_times")
    monkeypatch.setattr(kernel_times, "KEPT", 1)
    gpu, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [("a", 0, 6, gpu), ("b", 8, 10, gpu), ("a", 12, 20, gpu), ("c", 0, 99, host)]
    found = SimpleNamespace(
        events=lambda: [
            SimpleNamespace(
                name=name,
                device_type=device,
                time_range=SimpleNamespace(start=start, end=end, elapsed_us=lambda us=end - start: us),
            )
            for name, start, end, device in events
        ]
    )
    assert kernel_times.kernel_times(found, steps=2) == {
        "span_us": 10, "busy_us": 8, "kernels": [{"kernel": "a", "us": 7, "launches": 1}], "rest_us": 1
    }  # fmt: skip


@pytest.mark.slow
def test_recipe_of_the_shadow_s_size():
    """Catches sizes that are not what their name says."""
    lines = run(
        "shadow_size/measure.py", "--seeds", 0, "--sizes", "full", "mlp/4,heads/4", "--rows", 16
    ).splitlines()
    full, small = map(json.loads, lines)
    assert (
        full["shadow_intermediate_size"],
        small["shadow_intermediate_size"],
        small["shadow_attention_heads"],
    ) == (704, 176, 1)
    assert small["trainable"] < full["trainable"]


def test_without_updates_the_state_begins_at_the_first_injection(monkeypatch):
    """Catches a comparison of two adapters that are the same."""
    script = runpy.run_path(str(ROOT / "recipes" / "inject_from" / "measure.py"))
    settings = ShadowConfig(inject_from=3)
    usual = attached(tiny_model("llama"), settings).adapter
    monkeypatch.setattr(Adapter, "__init__", script["build_without"])
    without = attached(tiny_model("llama"), settings).adapter
    assert (usual.reads_from, len(usual.updates), len(usual.injections)) == (1, 2, 1)
    assert (without.reads_from, len(without.updates), len(without.injections)) == (3, 0, 1)


@pytest.mark.recipe
def test_recipe_of_inject_from(tmp_path, monkeypatch):
    """Catches a comparison of two runs that are the same."""
    monkeypatch.setattr(Adapter, "__init__", Adapter.__init__)  # which the recipe replaces
    # As many rows as three steps read: each of six runs would encode all of them.
    for split in ("train", "validation"):
        rows = (CLINC150 / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:96]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    monkeypatch.setattr(embedded, "CLINC150", tmp_path)
    rows = [
        json.loads(line)
        for line in run("inject_from/measure.py", "--seeds", 1, "--max-steps", 3, "--rows", 4).splitlines()
    ]
    assert [(row["variant"], row["inject_from"], row["reads"]) for row in rows[:3]] == [
        ("normed", 4, True),
        ("normed", 4, False),
        ("normed", 6, True),
    ]
    assert all(
        with_them["loss"] != without["loss"] for with_them, without in zip(rows[::2], rows[1::2], strict=True)
    )


def test_rows_of_gsm8k_are_prompts_and_completions(tmp_path):
    write_rows(tmp_path / "gsm8k.jsonl", [{"question": "1 + 1?", "answer": "Add.\n#### 2", "final": "2"}] * 2)
    run("gsm8k/prepare.py", tmp_path / "gsm8k.jsonl", tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    expected = {"prompt": "Question: 1 + 1?\nAnswer:", "completion": " Add.\n#### 2"}
    assert [json.loads(line) for line in lines] == [expected] * 2


@pytest.mark.parametrize("last_bit", [0.0, 2**-23])
def test_a_resumed_run_of_gsm8k_is_compared_by_its_bits(last_bit, tmp_path):
    """Catches a comparison that overlooks the last bit of a weight, and a mean over other steps."""
    for run_folder, moved in (("straight", 0.0), ("killed", last_bit)):
        adapter = tmp_path / run_folder / "adapter"
        adapter.mkdir(parents=True)
        save_file({"a": torch.tensor([1.0, 1 + moved]), "b": torch.zeros(2)}, adapter / "shadow.safetensors")
    losses = [{"step": 5 * step, "loss": 10.0 - step} for step in range(10)]
    write_rows(tmp_path / "straight" / "metrics.jsonl", [*losses, {"step": 50, "eval_loss": 1.0}])
    compare = runpy.run_path(str(ROOT / "recipes" / "gsm8k" / "verify.py"))["compare"]
    found = compare(tmp_path / "straight", tmp_path / "killed")
    assert found["equal_bits"] is (last_bit == 0)
    assert found["largest_difference"] == last_bit
    assert found["first_and_last_mean_loss"] == [9.5, 1.5]
    assert (found["tensors"], len(found["losses"])) == (2, 10)


@pytest.mark.recipe
def test_recipe_of_gsm8k(tmp_path):
    """Train, kill with SIGKILL, resume, compare every bit; then generate attached, detached and exported."""
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}", "final": str(2 * i)}
        for i in range(40)
    ]
    write_rows(tmp_path / "gsm8k.jsonl", rows)
    run("gsm8k/prepare.py", tmp_path / "gsm8k.jsonl", tmp_path / "rows.jsonl")
    flags = ("--flags", "--batch-size", 2, "--learning-rate", "3e-3")
    run(
        "gsm8k/verify.py",
        "--model",
        MODEL,
        "--data",
        tmp_path / "rows.jsonl",
        "--work",
        tmp_path / "work",
        "--steps",
        24,
        *flags,
    )
    record = json.loads((tmp_path / "work" / "verify.json").read_text(encoding="utf-8"))
    assert record["equal_bits"]
    assert record["killed_with"] != 0


def test_recipe_of_the_clinc150_subset(tmp_path):
    """Turn the shipped rows back into the source's form and build from them: the same rows must come out."""
    shipped = {
        split: [
            json.loads(line)
            for line in (CLINC150 / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for split in ("train", "validation", "test")
    }
    for split, rows in shipped.items():
        texts = [row["prompt"].removeprefix("Request: ").removesuffix("\nIntent:") for row in rows]
        write_rows(
            tmp_path / "clinc" / f"{split}.jsonl",
            [{"text": t, "intent": r["intent"]} for t, r in zip(texts, rows, strict=True)],
        )
    write_rows(tmp_path / "clinc" / "train_oos_plus_extra.jsonl", [{"text": "x", "intent": "oos"}])
    run("clinc150_subset/build.py", tmp_path / "clinc", tmp_path / "built")
    for split, rows in shipped.items():
        built = [
            json.loads(line)
            for line in (tmp_path / "built" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert {json.dumps(row) for row in rows} <= {json.dumps(row) for row in built}, split
    labels = json.loads((tmp_path / "built" / "labels.json").read_text(encoding="utf-8"))
    assert labels == json.loads((CLINC150 / "labels.json").read_text(encoding="utf-8"))
    assert [len(rows) for rows in shipped.values()] == [3251, 700, 1000]
    assert {row["completion"] for row in shipped["test"]} == set(labels)
    assert all((row["completion"] == " [REMOTE]") == (row["intent"] == "oos") for row in shipped["train"])


def test_recipe_of_the_edge(tmp_path):
    """Catches a recipe that docs/guides/export.md names and that no longer runs."""
    pytest.importorskip("xllamacpp")
    gguf_file = pytest.importorskip("shadowpeft.export.gguf_file")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    gguf_file.write(model, tokenizer, tmp_path / "base.gguf")
    (tmp_path / "rows.jsonl").write_text(
        "\n".join((CLINC150 / "test.jsonl").read_text(encoding="utf-8").splitlines()[:3]), encoding="utf-8"
    )
    printed = run("edge/answer_gguf.py", "--data", tmp_path / "rows.jsonl", tmp_path / "base.gguf")
    assert "% of 3 right" in printed


def test_recipe_of_the_vocabulary():
    """Catches a recipe that drops what a token is merged of: text that it counted must not lose any token."""
    rows = CLINC150 / "test.jsonl"
    words = ("--tokenizer", MODEL, "--width", 256, "--train", rows, "--test", rows)
    printed = run("vocabulary/measure.py", *words)
    assert "of 6,144" in printed
    assert "0.00% of" in printed
