"""What is found out about text, base and tokenizer before the base's weights are loaded."""

import json

import numpy as np
import pytest
from helpers.pretraining import logged, settings
from helpers.runs import save_base

from shadowpeft import UserError
from shadowpeft.errors import ConfigError
from shadowpeft.pretrain.run import pretrain
from shadowpeft.pretrain.text import read_text, warn_of_skipped
from shadowpeft.storage import stock_models


def named(value: object) -> str:
    return "-".join(value) if isinstance(value, dict) else ""


@pytest.fixture(scope="module")
def same_width_folder(tmp_path_factory):
    """Another model as wide as the base."""
    return save_base(tmp_path_factory.mktemp("same"), seed=3, num_hidden_layers=2)


def test_the_first_documents_are_held_out_and_the_rest_is_trained_on(base_folder, text_file, tmp_path):
    """Catches documents that are both trained on and evaluated on, and others than the first held out."""
    read = read_text(settings(base_folder, text_file, tmp_path / "run", shuffle_rows=1))
    tokenizer = stock_models.load_tokenizer(str(base_folder))
    texts = [json.loads(line)["text"] for line in text_file.read_text(encoding="utf-8").splitlines()]
    end = tokenizer.eos_token_id
    first, behind = (
        [token for text in part for token in [*tokenizer(text, add_special_tokens=False).input_ids, end]]
        for part in (texts[:4], texts[4:10])
    )
    assert [row.tolist() for row in read.held_out] == [
        first[start : start + 16] for start in range(0, len(first) - 15, 16)
    ]
    assert next(iter(read.rows))["input_ids"].tolist() == behind[:16]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_length": 4096}, "at most the model's 128 tokens"),
        ({"eval_documents": 42}, "behind the 42 documents held out"),
        ({"data": "missing.jsonl"}, "no such file"),
        ({"model": "./missing"}, "no model folder"),
        ({"start": "./missing"}, "no model folder"),
    ],
    ids=named,
)
def test_text_and_models_that_cannot_be_used_are_refused_before_the_work(
    base_folder, text_file, tmp_path, changes, told
):
    """Catches a mistake that fails in the middle of a run, or with something else than one sentence."""
    with pytest.raises(UserError, match=told):
        pretrain(settings(base_folder, text_file, tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"start": "SAME WIDTH", "warm_start": "pinv"},
            "warm_start pinv .* has the base's width and so no projection to fit",
        ),
        (
            {"start": "SAME WIDTH", "train_parts": "projection"},
            "has the base's width and so no projection to train",
        ),
        ({"start": "SHADOW", "warm_start": "none"}, "warm_start none .* goes on from what it is"),
        (
            {"start": "SHADOW", "train_parts": "projection"},
            "has the base's width and so no projection to train",
        ),
        (
            {"data": "PLAIN", "text_field": "body"},
            "text_field body .* nor .npz files have fields; .* rows of .jsonl or .parquet",
        ),
    ],
    ids=named,
)
def test_settings_that_would_change_nothing_are_refused(
    straight, base_folder, text_file, same_width_folder, tmp_path, monkeypatch, changes, told
):
    """Catches a setting that is taken and not applied, or refused only when the base is loaded."""
    (tmp_path / "plain.txt").write_text("hello hello four systems", encoding="utf-8")
    places = {"SHADOW": straight / "shadow", "PLAIN": tmp_path / "plain.txt", "SAME WIDTH": same_width_folder}
    monkeypatch.setattr(stock_models, "load_model", None)
    changes = {name: str(places.get(value, value)) for name, value in changes.items()}
    with pytest.raises(UserError, match=told):
        pretrain(settings(base_folder, text_file, tmp_path / "run", **changes))
    assert not list((tmp_path / "run").glob("*"))


def test_a_field_that_only_the_held_out_text_has_is_used(base_folder, text_file, tmp_path):
    """Catches a name of a field refused, though the text to evaluate on has rows with fields."""
    (tmp_path / "plain.txt").write_text("hello hello four systems " * 20, encoding="utf-8")
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(text_file.read_text(encoding="utf-8").replace('"text"', '"body"'), encoding="utf-8")
    changes = {"text_field": "body", "eval_data": str(held_out), "eval_documents": 100}
    read = read_text(settings(base_folder, tmp_path / "plain.txt", tmp_path / "run", **changes))
    assert len(read.held_out) > 1


def test_token_ids_are_evaluated_on_other_text(base_folder, text_file, tmp_path):
    """Catches a whole file of ids held out as one document, which leaves nothing to train on."""
    np.savez(tmp_path / "ids.npz", ids=np.arange(64) % 20)
    with pytest.raises(ConfigError, match=r"of which no documents can be held out; give eval_data, too"):
        read_text(settings(base_folder, tmp_path / "ids.npz", tmp_path / "run"))
    apart = {"eval_data": str(text_file), "eval_documents": 100}
    read = read_text(settings(base_folder, tmp_path / "ids.npz", tmp_path / "run", **apart, shuffle_rows=1))
    assert next(iter(read.rows))["input_ids"].tolist() == list(range(16))


def test_model_with_other_tokens_is_refused(base_folder, text_file, tmp_path):
    """Catches a start from a model to which the same ids mean other words."""
    other = save_base(tmp_path / "other", seed=3)
    tokenizer = stock_models.load_tokenizer(str(other))
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(other)
    with pytest.raises(UserError, match="must have one tokenizer"):
        pretrain(settings(base_folder, text_file, tmp_path / "run", start=str(other)))


def test_rows_passed_over_in_an_earlier_session_are_counted(base_folder, text_file, tmp_path):
    """Catches a resumed run that fails, not knowing the first bad row, and a warning of no bad row."""
    read = read_text(settings(base_folder, text_file, tmp_path / "run"))
    warn_of_skipped(read.rows, "text")
    read.rows.skipped["empty"] = 3
    with pytest.warns(UserWarning, match=r"passed over: 3 empty \(the first is of an earlier session\)$"):
        warn_of_skipped(read.rows, "text")


@pytest.mark.parametrize("apart", [False, True], ids=["first documents", "eval data"])
def test_bad_rows_of_the_held_out_text_are_told_and_take_no_documents_place(
    apart, straight, base_folder, text_file, tmp_path
):
    """Catches bad rows dropped without a word, and bad rows that leave fewer documents to evaluate on."""
    lines, bad = (
        text_file.read_text(encoding="utf-8").splitlines(keepends=True),
        ['{"text": ""}\n'] * 5 + ["{\n"],
    )
    data, held_out = tmp_path / "data.jsonl", tmp_path / "held_out.jsonl"
    held_out.write_text("".join([*bad, *lines[:4]]), encoding="utf-8")
    data.write_text("".join([*bad, *lines]), encoding="utf-8")
    source, where = data, {}
    if apart:
        data.write_text("".join(lines), encoding="utf-8")
        source, where = held_out, {"eval_data": str(held_out), "eval_documents": 100}
    told = (
        rf"held-out text .*: 5 empty \(the first is {source}:1\), 1 undecodable \(the first is {source}:6\)"
    )
    with pytest.warns(UserWarning, match="of the text without"), pytest.warns(UserWarning, match=told):
        result = pretrain(settings(base_folder, data, tmp_path / "run", max_steps=4, **where))
    assert (result.eval_empty_rows, result.eval_undecodable_rows) == (5, 1)
    assert (result.empty_rows, result.undecodable_rows) == (1, 1)
    assert result.start_loss == pytest.approx(logged(straight, "eval_loss")[0], rel=1e-6), (
        "of the same four documents"
    )
