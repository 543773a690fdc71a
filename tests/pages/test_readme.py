"""What the README and the pages of the documentation show is run as it stands, on the embedded model."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from helpers.recipes import ROOT, run, write_rows
from transformers import AutoModelForCausalLM

from shadowpeft import attach
from shadowpeft.cli import main
from shadowpeft.compare import run_cell
from shadowpeft.embedded import CLINC150, MODEL
from shadowpeft.serve import run as serving

HUB_ID = "Qwen/Qwen3-0.6B"
README = ROOT / "README.md"
GUIDES = ROOT / "docs" / "guides"
# Pages whose commands follow each other, with the verbs in their order. The export has a test of its own.
PAGES = {
    README: ["train", "generate", "eval", "export", "serve", "compare"],
    ROOT / "docs" / "get-started.md": ["doctor"],
    GUIDES / "train.md": ["train", "generate", "generate", "train", "train"],
    GUIDES / "evaluate.md": ["eval", "eval", "eval", "eval"],
    GUIDES / "pretrain.md": ["pretrain", "train"],
    GUIDES / "bench.md": ["bench", "bench", "bench"],
    GUIDES / "compare.md": ["compare"],
}
# What makes a command of a page small.
FEW = {
    "train": ["--max-steps", "2"], "generate": ["--max-new-tokens", "4"], "eval": ["--max-new-tokens", "4"],
    "pretrain": [
        "--max-steps", "2", "--batch-size", "2", "--max-length", "32",
        "--eval-documents", "2", "--eval-rows", "2",
    ],
    "bench": ["--methods", "base,shadow", "--rounds", "1", "--device", "cpu"],
    "serve": ["--port", "0"],
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.S)


def commands(page: Path) -> list[str]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("shadowpeft ")]


def words_of(command: str) -> list[str]:
    command = command.replace(HUB_ID, str(MODEL)).replace("--shape 0.6b", "--shape tiny")
    return shlex.split(command, comments=True)[1:]


def execute(page: Path, code: str, **names: object) -> dict[str, object]:
    exec(compile(code.replace(f'"{HUB_ID}"', repr(str(MODEL))), page.name, "exec"), names)
    return names


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """Catches a README whose code was never run."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README, "python")
    ids = torch.tensor([[5, 6, 7, 8]])
    names = execute(README, code, ids=ids, labels=ids, base=AutoModelForCausalLM.from_pretrained(MODEL))
    assert names["out"].shadow_loss > 0
    assert (tmp_path / "run" / "adapter" / "shadow.safetensors").exists()


@pytest.mark.parametrize("page", ["get-started.md", "guides/classify.md", "guides/adapters-and-threads.md"])
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """Catches a page whose code was never run."""
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / page
    # Blocks behind the first show a part of a program.
    code, *_ = blocks(path, "python")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    names = execute(path, code, ids=ids, mask=mask, labels=ids)
    assert {"base", "model"} & set(names)
    assert list(tmp_path.glob("*/shadow.safetensors"))


def test_the_commands_of_the_pages_run(tmp_path, monkeypatch, capsys):
    """Catches a flag on a page that does not exist, and a step that needs another one first."""
    monkeypatch.chdir(tmp_path)

    async def serve(*given):
        """Stand in for the server's life, which would not end; all before it is done."""

    monkeypatch.setattr(serving, "_run", serve)
    for name in ("train", "test"):
        rows = (CLINC150 / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    sentence = "The river runs past the old town, and it never sleeps, they say, number"
    write_rows(tmp_path / "text.jsonl", [{"text": f"{sentence} {i}."} for i in range(40)])
    for page, verbs in PAGES.items():
        assert [command.split()[1] for command in commands(page)] == verbs, page
        for command in commands(page):
            words = words_of(command)
            # Runs of their own, below.
            if words[0] == "compare" or "--lm-eval" in words:
                continue
            # A file of settings names the number of steps already.
            few = [] if "--config" in words else FEW.get(words[0], [])
            assert main([*words, *few]) == 0, capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").config.num_hidden_layers == 1
    assert (tmp_path / "shadow" / "shadow").is_dir()


def test_the_standard_tasks_of_the_pages_run(tmp_path, capsys):
    """As above; the tasks' data are on the hub, so two of the same names stand in for them."""
    pytest.importorskip("lm_eval")
    from helpers.lm_eval_tasks import CHOOSE, ROWS, write_tasks

    (command,) = (line for line in commands(GUIDES / "evaluate.md") if "--lm-eval" in line)
    attach(AutoModelForCausalLM.from_pretrained(MODEL)).save_pretrained(tmp_path / "adapter")
    words = words_of(command.replace("run/adapter", str(tmp_path / "adapter")))
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
    (command,) = (line for line in commands(README) if line.startswith("shadowpeft compare"))
    assert commands(GUIDES / "compare.md") == [command.partition("  #")[0]]
    words = words_of(
        command.replace("clinc150,gsm8k", "clinc150").replace(
            "--output study", f"--output {tmp_path / 'study'}"
        )
    )
    few = (
        "--steps 1 --trials 1 --seeds 1 --batch-size 2 --validation-rows 4 --test-rows 4 "
        "--forgetting-rows 2 --ood false --device cpu"
    )
    assert main([*words, "--data-dir", str(tmp_path / "data"), *few.split(), "--json"]) == 0, (
        capsys.readouterr().err
    )
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["failed"]) == (summary["cells"], {})


def test_make_knows_the_commands_of_the_readme():
    """Catches a target that a page names, on a line or within a sentence, and that the Makefile lacks."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    named = set(
        re.findall(
            r"(?:^|`)make ([\w-]+)", "\n".join(page.read_text(encoding="utf-8") for page in pages), re.M
        )
    )
    assert named >= {"demo", "test", "check", "study-smoke", "docs"}
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target
