"""GGUF files as a whole: types of tensors, the command that writes them, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.families import tiny_config, tiny_model
from helpers.gguf_files import File, as_a_user, made
from helpers.gguf_tokenizers import tokenizer_of
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, PreTrainedModel

from shadowpeft.cli import main
from shadowpeft.errors import CheckpointError, ConfigError, UnsupportedModelError
from shadowpeft.export import export

gguf = pytest.importorskip("gguf")
gguf_file = pytest.importorskip("shadowpeft.export.gguf_file")


@pytest.mark.parametrize(
    ("dtype", "kind", "bound"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 8e-3), ("q8_0", "Q8_0", 8e-3)]
)
def test_matrices_are_of_the_type_asked_for(dtype: str, kind: str, bound: float, tmp_path: Path) -> None:
    """Catches vectors in 16 bits, which llama.cpp refuses, and numbers that come back as others."""
    model, tokenizer = made("llama", hidden_size=64)
    stored = (
        model
        if dtype == "q8_0"
        else AutoModelForCausalLM.from_pretrained(saved(model, tmp_path / "model"), dtype=dtype)
    )
    gguf_file.write(stored, tokenizer, tmp_path / "small.gguf", quantise=dtype == "q8_0")
    gguf_file.write(model, tokenizer, tmp_path / "exact.gguf")
    small, exact = File(tmp_path / "small.gguf"), File(tmp_path / "exact.gguf")
    odd = {"Q8_0": "F16"}.get(kind, kind)  # of rows that are no whole blocks of 32 numbers
    for name, tensor in exact.tensors.items():
        wanted = odd if tensor.shape[-1] % 32 else kind
        assert small.types[name] == ("F32" if tensor.ndim == 1 else wanted)
        assert (small.tensors[name] - tensor).abs().max() <= bound * tensor.abs().max()
    assert small.types["blk.0.ffn_down.weight"] == odd, "48 numbers are no whole blocks of 32"


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


# The command


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ready")
    model, tokenizer = made("qwen3")
    as_a_user(model, tokenizer, folder)
    return folder


def test_the_command_writes_one_file(ready: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a command line that cannot name the format, and files beside the one."""
    words = [
        "--model",
        ready / "base",
        "--adapter",
        ready / "adapter",
        "--output",
        tmp_path / "small.gguf",
        "--dtype",
        "q8_0",
        "--json",
    ]
    capsys.readouterr()
    assert main(["export", "--to", "gguf", *map(str, words)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]
    assert told["size_bytes"] == (tmp_path / "small.gguf").stat().st_size
    assert told["model_class"] == "Qwen3ForCausalLM"
    assert File(tmp_path / "small.gguf").arch == "qwen3"


def test_push_uploads_the_file_and_a_card(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a file on the hub that nobody can tell what it is."""
    files: dict[str, Any] = {}

    def upload(_: HfApi, repo_id: str, path_or_fileobj: Any, path_in_repo: str) -> None:
        assert repo_id == "somebody/small"
        files[path_in_repo] = path_or_fileobj

    monkeypatch.setattr(HfApi, "whoami", lambda _: {"name": "somebody"})
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: "https://hub/somebody/small")
    monkeypatch.setattr(
        HfApi,
        "upload_file",
        lambda _, repo_id, path_or_fileobj, path_in_repo: files.update({path_in_repo: path_or_fileobj}),
    )
    done = export(
        str(ready / "base"), ready / "adapter", tmp_path / "small.gguf", to="gguf", push="somebody/small"
    )
    assert done.pushed == "https://hub/somebody/small"
    assert files["small.gguf"] == tmp_path / "small.gguf"
    assert "llama-cli -m" in files["README.md"].decode()


def test_a_broken_write_leaves_nothing(ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches half a file that looks whole."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(CheckpointError, match=r"No space left on device"):
        export(str(ready / "base"), ready / "adapter", tmp_path / "small.gguf", to="gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [("small", r"must end in \.gguf, got"), ("taken.gguf", "exists; choose another")],
    ids=["a folder", "taken"],
)
def test_the_output_is_a_new_file(output: str, message: str, ready: Path, tmp_path: Path) -> None:
    """Catches a folder written for a file, and a file written over."""
    (tmp_path / "taken.gguf").write_text("something dear", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        export(str(ready / "base"), ready / "adapter", tmp_path / output, to="gguf")
    assert (tmp_path / "taken.gguf").read_text(encoding="utf-8") == "something dear"


def test_without_the_library_the_sentence_names_it(
    ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a trace for a missing extra."""
    for name in [name for name in sys.modules if name.startswith("shadowpeft.export.gguf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("shadowpeft.export.gguf_file")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"--to gguf needs gguf; pip install 'shadowpeft\[gguf\]'"):
        export(str(ready / "base"), ready / "adapter", tmp_path / "small.gguf", to="gguf")


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    """Catches a file whose head llama.cpp would take for words."""
    tokenizer = tokenizer_of("qwen2")
    base = tiny_model(
        "qwen3", "sequence-classification", config=tiny_config("qwen3", vocab_size=len(tokenizer))
    )
    as_a_user(base, tokenizer, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"a classifier cannot be written as GGUF"):
        export(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "small.gguf", to="gguf")
