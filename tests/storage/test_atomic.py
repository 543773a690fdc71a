"""Files written together: all are new, or all are as they were."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from shadowpeft.errors import CheckpointError
from shadowpeft.storage.atomic import text, write_together


def content_of(folder) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def full(*_args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kept").mkdir()
    write_together(tmp_path / "kept", {"a": text("old a"), "b": text("old b")})
    (tmp_path / "kept" / "beside").write_text("not ours", encoding="utf-8")
    return tmp_path / "kept"


def test_all_files_become_new_and_others_stay(folder):
    write_together(folder, {"a": text("new é"), "c": text("c")})
    assert content_of(folder) == {"a": "new é", "b": "old b", "c": "c", "beside": "not ours"}


def test_the_folder_is_made(tmp_path):
    write_together(tmp_path / "new" / "deep", {"a": text("a")})
    assert content_of(tmp_path / "new" / "deep") == {"a": "a"}


@pytest.mark.parametrize("step", ["write", "sync", "rename"])
def test_a_failure_leaves_all_files_as_they_were(folder, step, monkeypatch):
    """Catches writing in place, files renamed one by one as they are written, and partial files that stay."""
    before, writers = content_of(folder), {"a": text("new a"), "b": text("new b")}
    if step == "write":
        writers["b"] = full
    else:
        monkeypatch.setattr({"sync": "os.fsync", "rename": "os.replace"}[step], full)
    message = "could not save to .*No space left on device; what was saved there before is unchanged"
    with pytest.raises(CheckpointError, match=message):
        write_together(folder, writers)
    assert content_of(folder) == before


def test_an_error_of_safetensors_is_one_of_ours(folder):
    before = content_of(folder)

    def broken(path) -> None:
        save_file({"weight": torch.zeros(2)}, path)
        raise SafetensorError("I/O error")

    with pytest.raises(CheckpointError, match="I/O error; what was saved there before is unchanged"):
        write_together(folder, {"a": text("new a"), "weights": broken})
    assert content_of(folder) == before


def test_a_folder_in_place_of_a_file_stops_before_anything_is_written(folder):
    """Catches a rename that fails at the second file, when the first is already new."""
    (folder / "b").unlink()
    (folder / "b").mkdir()
    with pytest.raises(CheckpointError, match="b is a folder there; nothing was written"):
        write_together(folder, {"a": text("new a"), "b": text("new b")})
    assert (folder / "a").read_text(encoding="utf-8") == "old a"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "beside"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(CheckpointError, match="could not save"):
        write_together(tmp_path / "taken", {"a": text("a")})
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "x"
