"""Rows, tokenizers and bases that are refused before the weights are loaded."""

import json

import pytest
from helpers.families import (
    tiny_config,
)
from helpers.runs import save_base, write_rows
from transformers import AutoConfig, AutoModelForCausalLM, MptConfig

from shadowpeft import ShadowConfig, UserError, arch, attach
from shadowpeft.errors import ConfigError, DataError, UnsupportedModelError
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts
from shadowpeft.train import examples, train
from shadowpeft.train.config import TrainConfig


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        ('{"prompt": "what", "completion": ', DataError, "rows.jsonl:2: expected one JSON object"),
        ('{"question": "what"}', DataError, "rows.jsonl:2: expected a row like"),
        (
            json.dumps({"prompt": "what " * 200, "completion": "is"}),
            DataError,
            "rows.jsonl:2: the prompt has",
        ),
        (json.dumps({"prompt": "what", "completion": ""}), DataError, "rows.jsonl:2: expected an answer"),
    ],
    ids=["broken JSON", "no known field", "too long", "no label"],
)
def test_bad_rows_are_refused_first(row, kind, message, base_folder, tmp_path, no_weights):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "hello"}\n' + row + "\n", encoding="utf-8")
    with pytest.raises(kind, match=message):
        train(
            TrainConfig(model=str(base_folder), data=str(path), output=str(tmp_path / "run"), eval_fraction=0)
        )
    assert list((tmp_path / "run").iterdir()) == []


def test_bad_bases_are_refused_first(rows_file, tmp_path, no_weights):
    common = {"data": str(rows_file), "output": str(tmp_path / "run")}
    with pytest.raises(UserError, match="there is no model folder"):
        train(TrainConfig(model=str(tmp_path / "nowhere"), **common))
    MptConfig().save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match="mpt"):
        train(TrainConfig(model=str(tmp_path / "other"), **common))
    small = save_base(tmp_path / "small", vocab_size=50)
    with pytest.raises(ConfigError, match="but the model knows only 50 tokens"):
        train(TrainConfig(model=str(small), **common))


def test_a_first_injection_beyond_the_base_is_refused_first(base_folder, rows_file, tmp_path, no_weights):
    common = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    wanted = r"inject_from must be below the base's \d+ blocks, got 99: .*; set it to at most \d+$"
    with pytest.raises(ConfigError, match=wanted):
        train(TrainConfig(shadow=ShadowConfig(inject_from=99), **common))


def test_a_frozen_backbone_without_another_model_is_refused_first(
    base_folder, rows_file, tmp_path, no_weights
):
    """Catches a mistake that is found after minutes, for a random shadow and for a pretrained copy."""
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    shadow_folder.save(attach(base).adapter.shadow, BaseFacts.of(base), tmp_path / "shadow", run={})
    common = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    for shadow in (None, str(tmp_path / "shadow")):
        settings = TrainConfig(shadow=ShadowConfig(train_backbone=False), shadow_model=shadow, **common)
        with pytest.raises(ConfigError, match="train_backbone false keeps the blocks of another model"):
            train(settings)


def test_rows_are_held_out_packed_and_named(base_folder, rows_file):
    """Catches evaluation on packed rows, and a fraction that is held out beside rows of their own."""
    common = {"model": str(base_folder), "output": "o", "packing": True, "max_length": 64}
    drawn = examples.read(TrainConfig(data=str(rows_file), eval_fraction=0.25, **common))
    assert len(drawn.held_out) == 6
    assert len(drawn.train) < 18
    assert "position_ids" in drawn.train[0]
    assert "position_ids" not in drawn.held_out[0]
    given = examples.read(TrainConfig(data=str(rows_file), eval_data=str(rows_file), **common))
    assert len(given.held_out) == 24
    nothing = examples.read(TrainConfig(data=str(rows_file), eval_fraction=0.0, **common))
    assert nothing.held_out == []
    assert nothing.train == given.train


def test_a_draft_vocabulary_of_all_tokens_is_refused_first(base_folder, rows_file, tmp_path, no_weights):
    """Catches a vocabulary that saves nothing, and is a whole head's copy."""
    common = {"model": str(base_folder), "data": str(rows_file), "output": str(tmp_path / "run")}
    size = AutoConfig.from_pretrained(base_folder).vocab_size
    with pytest.raises(ConfigError, match=f"draft_vocabulary must be below {size}, .* got {size}"):
        train(TrainConfig(draft_vocabulary=size, **common))


@pytest.mark.parametrize("model_type", ["bloom", "falcon", "lfm2", "opt"])
@pytest.mark.parametrize("place", ["model", "shadow_model"])
def test_packing_is_refused_for_families_that_cannot(
    model_type, place, base_folder, rows_file, tmp_path, no_weights
):
    """Catches a run whose documents see each other without a word, found before the weights are loaded."""
    tiny_config(model_type).save_pretrained(tmp_path / "other")
    folders = {"model": str(base_folder), "data": str(rows_file)}
    changed = {**folders, "output": str(tmp_path / "run"), place: str(tmp_path / "other")}
    with pytest.raises(
        ConfigError,
        match=f"{arch.FAMILIES[model_type].name} cannot be trained on packed rows.*leave out packing",
    ):
        train(TrainConfig(**changed, packing=True, max_length=32))


@pytest.mark.parametrize("row", [{"foo": 1}, {"prompt": "a", "completion": 3}])
def test_what_is_wrong_with_the_only_row_is_told_first(row, tmp_path):
    """Catches a hint to add rows like one that cannot be used."""
    path = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: "):
        examples._rows(TrainConfig(model="m", data=str(path), output="o"))
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="needs at least 2 rows"):
        examples._rows(TrainConfig(model="m", data=str(path), output="o"))
