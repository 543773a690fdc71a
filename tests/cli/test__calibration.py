"""Who answers the rows of `shadowpeft calibrate`; `test_calibrate.py` runs models and a server."""

import pytest
from helpers.answered import made_up
from helpers.rows import row

from shadowpeft.cli import _calibration
from shadowpeft.cli._answering import Answering
from shadowpeft.errors import ConfigError, DataError
from shadowpeft.evaluation.roles import LocalRole
from shadowpeft.route import answered as files


def test_rows_without_answers_need_somebody_to_answer(tmp_path):
    with pytest.raises(ConfigError, match="rows:3 is not answered yet; give --model or --endpoint"):
        _calibration.answered({"data": [row("rows:3", prompt="a", completion="b")]}, Answering(), tmp_path)


def test_answers_are_kept_although_a_later_set_fails(monkeypatch, tmp_path):
    """Catches hours of answers that are lost where the rows of a test cannot be answered."""
    rows = [row("rows:0", prompt="a", completion="b")]
    role = LocalRole(None, None, 1)
    monkeypatch.setattr(_calibration, "_roles", lambda flags: (role, None))

    def answer(rows, *_):
        if rows[0].where == "test:0":
            raise DataError("no")
        return made_up(1)

    monkeypatch.setattr(_calibration, "answered_rows", answer)
    later = [row("test:0", prompt="a", completion="b")]
    with pytest.raises(DataError, match="no"):
        _calibration.answered({"data": rows, "test": later}, Answering(model="tiny"), tmp_path)
    assert files.is_answered({"answer": "", "logprobs": []})
    assert [path.name for path in tmp_path.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "[", '"a"'])
def test_labels_must_be_a_list_of_texts(base_folder, tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_text(content, encoding="utf-8")
    flags = Answering(model=str(base_folder), labels=str(path))
    with pytest.raises(DataError, match="expected a JSON list of the possible answers"):
        _calibration.answered({}, flags, tmp_path)


def test_a_model_without_an_adapter_has_no_cloud(base_folder, tmp_path):
    (tmp_path / "labels.json").write_text('["two", "four"]', encoding="utf-8")
    flags = Answering(model=str(base_folder), labels=str(tmp_path / "labels.json"), device="cpu")
    edge, cloud = _calibration._roles(flags)
    assert cloud is None
    assert edge.labels == ["two", "four"]
