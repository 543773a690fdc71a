"""What README shows is run as it stands, on the embedded model; so is every recipe."""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shadowpeft import attach
from shadowpeft.cli import main
from shadowpeft.compare import run_cell
from shadowpeft.embedded import CLINC150, MODEL

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HUB_ID = "Qwen/Qwen3-0.6B"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def run(script: str, *words: object, timeout: int = 240) -> str:
    """Run a recipe as its README says and return what it printed."""
    command = [sys.executable, str(ROOT / "recipes" / script), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """Catches a README whose code was never run."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    ids = torch.tensor([[5, 6, 7, 8]])
    names = {"ids": ids, "labels": ids, "base": AutoModelForCausalLM.from_pretrained(MODEL)}
    exec(compile(code.replace(f'"{HUB_ID}"', repr(str(MODEL))), "README.md", "exec"), names)
    assert names["out"].shadow_loss > 0
    assert (tmp_path / "run" / "adapter" / "shadow.safetensors").exists()


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    """Catches a flag in the README that does not exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        rows = (CLINC150 / f"{name}.jsonl").read_text().splitlines()[:8]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    write_rows(
        tmp_path / "text.jsonl",
        [
            {"text": f"The river runs past the old town, and it never sleeps, they say, number {i}."}
            for i in range(40)
        ],
    )
    commands = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("shadowpeft ")
    ]
    assert [command.split()[1] for command in commands] == [
        *(
            "train",
            "generate",
            "eval",
            "eval",
            "export",
            "export",
            "pretrain",
            "doctor",
            "bench",
            "bench",
            "compare",
        )
    ]
    for command in commands:
        if "--lm-eval" in command or " compare " in command:  # runs of their own, below
            continue
        words = shlex.split(
            command.replace(HUB_ID, str(MODEL)).replace("--shape 0.6b", "--shape tiny"), comments=True
        )[1:]
        words += {
            "train": ["--max-steps", "2"], "generate": ["--max-new-tokens", "4"], "eval": ["--max-new-tokens", "4"],
            "pretrain": ["--max-steps", "2", "--batch-size", "2", "--max-length", "32", "--eval-documents", "2", "--eval-rows", "2"],
            "bench": ["--methods", "base,shadow", "--rounds", "1", "--device", "cpu"],
        }.get(words[0], [])  # fmt: skip
        assert main(words) == 0, capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").config.num_hidden_layers == 1
    assert (tmp_path / "small.gguf").read_bytes()[:4] == b"GGUF"
    assert (tmp_path / "shadow" / "shadow").is_dir()


def test_the_standard_tasks_of_the_readme_run(tmp_path, capsys):
    """As above; the tasks' data are on the hub, so two of the same names stand in for them."""
    pytest.importorskip("lm_eval")
    from helpers.lm_eval_tasks import CHOOSE, ROWS, write_tasks

    (command,) = (
        line for line in README.splitlines() if line.startswith("shadowpeft ") and "--lm-eval" in line
    )
    attach(AutoModelForCausalLM.from_pretrained(MODEL)).save_pretrained(tmp_path / "adapter")
    words = shlex.split(
        command.replace(HUB_ID, str(MODEL)).replace("run/adapter", str(tmp_path / "adapter")), comments=True
    )[1:]
    tasks = words[words.index("--lm-eval") + 1].split(",")
    for name in tasks:
        write_tasks(tmp_path / name, [""] * len(ROWS), CHOOSE.replace("choose", name, 1))
    assert main([*words, "--include-path", str(tmp_path), "--json"]) == 0, capsys.readouterr().err
    assert list(json.loads(capsys.readouterr().out)["tasks"]) == tasks


@pytest.mark.slow
def test_the_study_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """As above, on one of its tasks, with few steps and rows."""
    run("compare/smoke_data.py", tmp_path / "data")
    for name in ("WARM_UP_STEPS", "TIMED_STEPS", "TIMED_ITEMS", "TIMED_TOKENS"):
        monkeypatch.setattr(run_cell, name, 1)
    (command,) = (line for line in README.splitlines() if line.startswith("shadowpeft compare"))
    command = (
        command.replace(HUB_ID, str(MODEL))
        .replace("clinc150,gsm8k", "clinc150")
        .replace("--output study", f"--output {tmp_path / 'study'}")
    )
    words = shlex.split(command, comments=True)[1:]
    few = "--steps 1 --trials 1 --seeds 1 --batch-size 2 --validation-rows 4 --test-rows 4 --forgetting-rows 2 --ood false --device cpu"
    assert main([*words, "--data-dir", str(tmp_path / "data"), *few.split(), "--json"]) == 0, (
        capsys.readouterr().err
    )
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["failed"]) == (summary["cells"], {})


def test_make_knows_the_commands_of_the_readme():
    """Catches a target that a page names, on a line of its own or within a sentence, and the Makefile lacks."""
    makefile = (ROOT / "Makefile").read_text()
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", "\n".join(page.read_text() for page in pages), re.M))
    assert named >= {"demo", "test", "check", "study-smoke"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.mark.slow
def test_recipe_of_the_embedded_model(tmp_path):
    """Catches a recipe that no longer runs: tokenizer, shards, training, card."""
    text = 'The river runs past the old town, and people said that it never sleeps. "Where are you going?" asked Ann. '
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
    assert "perplexity" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.slow
def test_recipe_of_the_demo_settings(tmp_path):
    run("demo_settings/search.py", "--output", tmp_path, "--rows", 16, "--limit", 1, "--epochs", 1)
    (record,) = map(json.loads, (tmp_path / "search-0.jsonl").read_text().splitlines())
    assert 0 <= record["accuracy"] <= 1


@pytest.mark.slow
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
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in jobs))
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
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len({row["metrics"]["nll"] for row in rows}) == len(jobs)


@pytest.mark.slow
def test_a_search_tells_both_losses_of_a_language_model(tmp_path):
    """Catches a detached model that is read through the attached one's head, or whose loss is the attached one's."""
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(800)
    ]
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    for split, half in (("train", rows[:400]), ("test", rows[400:])):
        write_rows(tmp_path / "data" / "gsm8k" / f"{split}.jsonl", half)
    job = {"name": "plain", "task": "gsm8k", "learning_rate": 1e-9, "detached": True}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job) + "\n")
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
    (row,) = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    attached, detached = row["metrics"]["loss"], row["also"][0]["metrics"]["loss"]
    assert attached < 6 < detached  # a base that knows words, and a fresh shadow that knows none


def test_recipe_of_the_large_base(tmp_path):
    """Catches a mixture without one of its sources, or with unequal shares."""
    write_rows(
        tmp_path / "gsm8k.jsonl", [{"question": f"How many is {i}?", "answer": "#### 1"} for i in range(50)]
    )
    with gzip.open(tmp_path / "wiki.jsonl.gz", "wt") as file:
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
    texts = [json.loads(line)["text"] for line in (tmp_path / "mix.jsonl").read_text().splitlines()]
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
    recorded = json.loads((ROOT / "results" / "method" / "scales" / "scales.json").read_text())["models"][-1]
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
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["what"], row["impl"], row["width"]) for row in rows] == [
        ("forward", "reference", 24), ("forward and backward", "reference", 24)
    ]  # fmt: skip
    assert all(row["us"] > 0 for row in rows)


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


@pytest.mark.slow
def test_recipe_of_inject_from():
    """Catches a comparison of two runs that are the same."""
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


def test_recipe_of_gsm8k(tmp_path):
    """Trains, kills with SIGKILL, resumes and compares every bit, then generates attached, detached and exported."""
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
    record = json.loads((tmp_path / "work" / "verify.json").read_text())
    assert record["equal_bits"]
    assert record["killed_with"] != 0


def test_recipe_of_the_clinc150_subset(tmp_path):
    """Turns the shipped rows back into the source's form and builds from them again: the same rows must come out."""
    shipped = {
        split: [json.loads(line) for line in (CLINC150 / f"{split}.jsonl").read_text().splitlines()]
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
            json.loads(line) for line in (tmp_path / "built" / f"{split}.jsonl").read_text().splitlines()
        ]
        assert {json.dumps(row) for row in rows} <= {json.dumps(row) for row in built}, split
    labels = json.loads((tmp_path / "built" / "labels.json").read_text())
    assert labels == json.loads((CLINC150 / "labels.json").read_text())
    assert [len(rows) for rows in shipped.values()] == [3251, 700, 1000]
    assert {row["completion"] for row in shipped["test"]} == set(labels)
    assert all((row["completion"] == " [REMOTE]") == (row["intent"] == "oos") for row in shipped["train"])
