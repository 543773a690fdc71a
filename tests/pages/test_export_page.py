"""The commands of docs/guides/export.md are run as they stand; vLLM and llama.cpp have tests of their own."""

import re
import shlex
from pathlib import Path

import pytest

from shadowpeft.cli import main
from shadowpeft.embedded import CLINC150, MODEL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "export.md").read_text(encoding="utf-8")


def code(language: str, about: str) -> list[str]:
    return [block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.S) if about in block]


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    """Catches a flag that does not exist, a step that needs another first, and an answer that nobody got."""
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "test"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(
            "\n".join((CLINC150 / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:20]),
            encoding="utf-8",
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
    assert (tmp_path / "small.gguf").read_bytes()[:4] == b"GGUF"
    (in_transformers,) = code("python", "pipeline")
    exec(compile(in_transformers, "export.md", "exec"), {})
    (in_llama_cpp,) = code("python", "import xllamacpp")
    pytest.importorskip("xllamacpp")
    exec(compile(in_llama_cpp, "export.md", "exec"), {})
