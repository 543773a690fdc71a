"""`--shadow FOLDER` on the command line: beside the settings of the adapter, and in a file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.runs import save_base, text_rows, write_rows
from transformers import AutoModelForCausalLM

from shadowpeft import ConfigError, ShadowConfig, ShadowedModel
from shadowpeft.cli import _parser, compare, main, train
from shadowpeft.compare.checks import check_models
from shadowpeft.compare.study import Study
from shadowpeft.pretrain.start import fresh
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts

NEEDED = ["--model", "m", "--data", "d", "--output", "o"]


@pytest.fixture
def folders(tmp_path):
    """A base, a pretrained shadow of two small blocks, rows and a run's folder."""
    base = AutoModelForCausalLM.from_pretrained(save_base(tmp_path / "base"))
    shadow = fresh(base, ShadowConfig(shadow_layers=2, shadow_intermediate_size=16))
    shadow_folder.save(shadow, BaseFacts.of(base), tmp_path / "shadow", {})
    write_rows(tmp_path / "rows.jsonl", text_rows(8))
    return tmp_path


def run(folders, *flags: str) -> int:
    paths = [f"--model={folders / 'base'}", f"--data={folders / 'rows.jsonl'}", f"--output={folders / 'run'}"]
    return main(["train", *paths, "--device=cpu", "--eval-fraction=0", *flags])


def settings(*words: str):
    return _parser.parse("train", train.run, [*NEEDED, *words])["settings"]


def test_the_folder_stands_beside_the_settings():
    """Catches the flag being read as a file with the group's settings, or taking the group's flags with
    it.
    """
    for words in (
        ["--shadow", "x", "--shadow.r", "4"],
        ["--shadow.r=4", "--shadow=x"],
        ["--shadow.r=4", "--shadow-model", "x"],
    ):
        found = settings(*words)
        assert (found.shadow_model, found.shadow.r) == ("x", 4)
    assert settings("--shadow.r=4").shadow_model is None
    study = _parser.parse(
        "compare", compare.run, ["--model=m", "--tasks=clinc150", "--output=o", "--shadow", "x"]
    )["settings"]
    assert study.shadow_model == "x"


def test_the_flag_without_a_folder_is_named_as_it_was_written():
    with pytest.raises(
        ConfigError, match=r"--shadow needs a value behind it, got --shadow\.r=4; if that is the value"
    ):
        settings("--shadow", "--shadow.r=4")


def test_a_folder_in_place_of_the_settings_in_a_file_is_explained(tmp_path):
    (tmp_path / "run.yaml").write_text("shadow: some/folder\n", encoding="utf-8")
    with pytest.raises(
        ConfigError,
        match="shadow must hold settings, got 'some/folder'; a folder to start from is shadow_model",
    ):
        settings("--config", str(tmp_path / "run.yaml"))


@pytest.mark.parametrize("verb", ["train", "compare"])
def test_the_help_shows_the_flag_as_it_is_written(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--shadow FOLDER" in text
    assert "--shadow-model" not in text


def test_training_starts_from_the_folder(folders, capsys):
    """Catches a run that builds a random shadow all the same: with a learning rate of almost nothing the
    pretrained one is still there.
    """
    assert (
        run(folders, "--shadow", str(folders / "shadow"), "--learning-rate=1e-30", "--max-steps=1", "--json")
        == 0
    )
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    trained = ShadowedModel.from_pretrained(base, json.loads(capsys.readouterr().out)["adapter"]).adapters[
        "default"
    ]
    wanted = shadow_folder.load(base, folders / "shadow").state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in trained.shadow.state_dict().items())
    assert trained.settings.shadow_layers == 2
    assert yaml.safe_load((folders / "run" / "run.yaml").read_text(encoding="utf-8"))["shadow_model"] == str(
        folders / "shadow"
    )


def test_a_folder_that_cannot_serve_is_found_before_the_weights_are_loaded(folders, capsys, monkeypatch):
    """Catches a mistake that is told only after minutes of loading."""
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model", lambda *_: pytest.fail("the base was loaded")
    )
    assert run(folders, "--shadow", str(folders / "nowhere")) == 2
    assert "there is no model folder" in capsys.readouterr().err
    (folders / "shadow" / shadow_folder.CONFIG).write_text("{", encoding="utf-8")
    assert run(folders, "--shadow", str(folders / "shadow")) == 2
    assert "is not valid JSON" in capsys.readouterr().err


def test_contradicting_sizes_are_one_sentence(folders, capsys):
    assert run(folders, "--shadow", str(folders / "shadow"), "--shadow.shadow-intermediate-size=24") == 2
    assert "shadow_intermediate_size is set to 24, and the shadow in" in capsys.readouterr().err
    shutil.rmtree(folders / "shadow")


def with_other_tokens(folders) -> Path:
    """A plain model beside the base whose tokenizer, of the same size, has two tokens in each other's
    place.
    """
    model = save_base(folders / "model")
    content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (model / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return model


def test_a_model_with_the_bases_tokenizer_serves(folders):
    """Catches a comparison of more than tokens, which would refuse every plain model."""
    assert run(folders, "--shadow", str(save_base(folders / "model", hidden_size=16)), "--max-steps=1") == 0


def test_a_model_with_another_tokenizer_of_the_same_size_is_refused(folders, capsys, monkeypatch):
    """Catches a shadow that hears noise for words, which nothing else would tell: the sizes fit."""
    monkeypatch.setattr(
        "shadowpeft.storage.stock_models.load_model", lambda *_: pytest.fail("the base was loaded")
    )
    assert run(folders, "--shadow", str(with_other_tokens(folders))) == 2
    assert "'A' to the base and 'B' to the shadow" in capsys.readouterr().err


def test_a_study_refuses_it_too(folders):
    study = Study(
        str(folders / "base"),
        "clinc150",
        "o",
        methods="shadow-explicit",
        shadow_model=str(with_other_tokens(folders)),
    )
    with pytest.raises(ConfigError, match="'A' to the base and 'B' to the shadow"):
        check_models(study)
