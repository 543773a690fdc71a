"""Loading what the flags name: bases and adapters that cannot be used, and folders that are swapped."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.command_line import mistake
from helpers.runs import save_base
from safetensors.torch import load_file, save_file

from shadowpeft.cli._models import print_result, refuse_swapped
from shadowpeft.errors import ConfigError
from shadowpeft.storage.adapter_folder import CONFIG


def test_base_with_missing_weights(base_folder, tmp_path, capsys):
    """Catches transformers' habit of making up weights that a file lacks."""
    shutil.copytree(base_folder, tmp_path / "holed")
    weights = tmp_path / "holed" / "model.safetensors"
    save_file(
        {name: value for name, value in load_file(weights).items() if "layers.1.mlp.up_proj" not in name},
        weights,
        {"format": "pt"},
    )
    said = mistake(["generate", "--model", tmp_path / "holed", "--prompt", "x"], capsys)
    assert "lacks 1 weights, such as model.layers.1.mlp.up_proj.weight" in said


def test_model_that_is_not_reachable(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = mistake(["generate", "--model", "nobody/nothing", "--prompt", "x"], capsys)
    assert "the hub id nobody/nothing cannot be loaded" in said
    remedy = "check its name, the connection and your access to it, or give a folder with config.json"
    assert re.search(rf"cannot be loaded: We couldn't connect to [^;]*[^.;]; {remedy}$", said.strip()), (
        "one sentence of three"
    )


def test_models_beside_a_missing_folder_are_named(base_folder, tmp_path, capsys):
    """Catches a misspelt folder whose user has to look for the right one, and folders that hold no model."""
    asked = ["generate", "--model", tmp_path / "models" / "qwn", "--prompt", "x"]
    for name in ("qwen", "gemma"):
        shutil.copytree(base_folder, tmp_path / "models" / name)
    (tmp_path / "models" / "notes").mkdir()
    there = f"{tmp_path}/models/gemma, {tmp_path}/models/qwen"
    assert f"give a folder with config.json (there are: {there}), or a hub id such as" in mistake(
        asked, capsys
    )
    for number in range(8):
        shutil.copytree(tmp_path / "models" / "gemma", tmp_path / "models" / f"a{number}")
    assert f"{tmp_path}/models/a7 and 2 more), or a hub id" in mistake(asked, capsys)
    shutil.rmtree(tmp_path / "models")
    assert "give a folder with config.json, or a hub id such as" in mistake(asked, capsys)


def damage(folder: Path, how: str) -> None:
    path = folder / "shadow.safetensors"
    state = load_file(path)
    name = "injections.0.up.weight"
    if how == "missing":
        del state[name]
    elif how == "extra":
        state["injections.9.up.weight"] = state[name].clone()
    elif how == "misshapen":
        state[name] = torch.zeros(3, 3)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        save_file(state, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "missing injections.0.up.weight"),
        ("extra", "extra injections.9.up.weight"),
        ("misshapen", "injections.0.up.weight has shape (3, 3), expected"),
        ("truncated", "is damaged or cut short"),
        ("empty", "is damaged or cut short"),
    ],
)
def test_damaged_adapters(how, message, base_folder, adapter_folder, rows_file, tmp_path, capsys):
    shutil.copytree(adapter_folder, tmp_path / "adapter")
    damage(tmp_path / "adapter", how)
    words = ["--model", base_folder, "--adapter", tmp_path / "adapter"]
    assert message in mistake(["eval", *words, "--data", rows_file], capsys)
    assert message in mistake(["export", *words, "--output", tmp_path / "new"], capsys)
    assert not (tmp_path / "new").exists()


def test_adapter_of_another_base(adapter_folder, tmp_path, capsys):
    other = save_base(tmp_path / "other", seed=7)
    said = mistake(["generate", "--model", other, "--adapter", adapter_folder, "--prompt", "x"], capsys)
    assert "was trained on another base" in said


def test_swapped_folders(base_folder, adapter_folder, rows_file, tmp_path, capsys, monkeypatch):
    """Catches transformers' long answer to an adapter given as a model, and a base loaded too early."""
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model",
        lambda *_, **__: pytest.fail("the model was loaded before the check"),
    )
    for words in (
        ["generate", "--prompt", "x"],
        ["eval", "--data", rows_file],
        ["export", "--output", tmp_path / "new"],
    ):
        said = mistake([*words, "--model", adapter_folder, "--adapter", base_folder], capsys)
        assert f"{adapter_folder} is an adapter folder; give it as --adapter" in said
        assert f"and its base ({base_folder}) as --model" in said
        said = mistake([*words, "--model", base_folder, "--adapter", base_folder], capsys)
        assert f"{base_folder} is a model; give it as --model" in said


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"base": {"name": null}}', b"\xff"], ids=str)
def test_a_damaged_adapter_given_as_the_model_is_still_an_adapter(content, tmp_path):
    """Catches a trace where the settings that should name the base cannot be read."""
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(ConfigError, match="is an adapter folder; give it as --adapter and its base"):
        refuse_swapped(str(tmp_path), None)


def test_results_are_shown_in_aligned_lines(capsys):
    """Catches a number with digits that mean nothing, and a value that is not there shown as a word."""
    print_result({"rows": 2, "eval_loss": 1.234567, "shadow_loss": None}, as_json=False)
    assert capsys.readouterr().out == "rows         2\neval loss    1.235\nshadow loss  -\n"


def test_json_has_no_word_for_infinity(capsys):
    print_result({"loss": 800.0, "perplexity": float("inf"), "spread": (float("nan"), 1.0)}, as_json=True)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"loss": 800.0, "perplexity": None, "spread": [None, 1.0]}
