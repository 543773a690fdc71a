"""What docs/guides/export.md shows is run as it stands, as far as this environment goes: vLLM and llama.cpp have tests of their own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from shadowpeft.cli import main
from shadowpeft.embedded import CLINC150, MODEL

ROOT = Path(__file__).parents[2]
PAGE, RECIPE = (ROOT / "docs" / "edge.md").read_text(), ROOT / "recipes" / "edge" / "answer_gguf.py"


def code(language: str, about: str) -> list[str]:
    return [block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) if about in block]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    """Catches a flag on the page that does not exist, a step that needs another one first, and an answer that nobody got."""
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(
            "\n".join((CLINC150 / f"{name}.jsonl").read_text().splitlines()[:20])
        )
    commands = [
        line
        for block in code("bash", "shadowpeft ")
        for line in block.splitlines()
        if line.startswith("shadowpeft ")
    ]
    assert [command.split()[1] for command in commands] == ["train", "eval", "eval", "export", "export"]
    for command in commands:
        words = shlex.split(command.replace("$MODEL", str(MODEL)).replace("$DATA", "data"))[1:]
        assert main([*words, *(["--max-steps", "2"] if words[0] == "train" else [])]) == 0, (
            capsys.readouterr().err
        )
    (in_transformers,) = code("python", "pipeline")
    exec(compile(in_transformers, "edge.md", "exec"), {})
    (in_llama_cpp,) = code("python", "import xllamacpp")
    pytest.importorskip("xllamacpp")
    exec(compile(in_llama_cpp, "edge.md", "exec"), {})


def test_the_pages_measurement_runs(tmp_path):
    """Catches a recipe that the page names and that no longer runs."""
    pytest.importorskip("xllamacpp")
    gguf_file = pytest.importorskip("shadowpeft.export.gguf_file")
    gguf_file.write(
        AutoModelForCausalLM.from_pretrained(MODEL),
        AutoTokenizer.from_pretrained(MODEL),
        tmp_path / "base.gguf",
    )
    (tmp_path / "rows.jsonl").write_text("\n".join((CLINC150 / "test.jsonl").read_text().splitlines()[:3]))
    words = [str(RECIPE), "--data", str(tmp_path / "rows.jsonl"), str(tmp_path / "base.gguf")]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "% of 3 right" in done.stdout


def test_the_measurement_of_a_trimmed_vocabulary_runs(tmp_path):
    """Catches a recipe that no longer runs, and one that drops what a token is merged of: text it counted must not lose any."""
    words = [
        "--tokenizer",
        MODEL,
        "--width",
        256,
        "--train",
        CLINC150 / "test.jsonl",
        "--test",
        CLINC150 / "test.jsonl",
    ]
    script = ROOT / "recipes" / "vocabulary" / "measure.py"
    done = subprocess.run(
        [sys.executable, str(script), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of 6,144" in done.stdout
    assert "0.00% of" in done.stdout
