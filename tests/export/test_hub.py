"""Uploads to the hub, which a fake stands for."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.exports import stock_logits
from helpers.families import VOCAB, token_ids
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.export import export
from shadowpeft.export.hub import logged_in


class Hub:
    """Takes uploads like `HfApi`, and keeps what was uploaded."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.repository = ""

    def create_repo(self, repo_id: str, exist_ok: bool) -> str:
        assert exist_ok
        self.repository = repo_id
        return f"https://hub/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        assert repo_id == self.repository
        self.files = {path.name: path.stat().st_size for path in folder_path.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(HfApi, "whoami", lambda _: {"name": "somebody"})
    monkeypatch.setattr(HfApi, "create_repo", lambda _, *args, **kwargs: fake.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **kwargs: fake.upload_folder(**kwargs))
    return fake


def test_push_uploads_the_whole_folder(hub: Hub, ready: SimpleNamespace, tmp_path: Path) -> None:
    """Catches an upload that lacks files, or that begins before the folder is whole."""
    done = export(ready.base, ready.adapter, tmp_path / "small", push="somebody/small")
    assert (hub.repository, done.pushed) == ("somebody/small", "https://hub/somebody/small")
    assert hub.files == {
        name: (tmp_path / "small" / name).stat().st_size for name in os.listdir(tmp_path / "small")
    }
    assert {"model.safetensors", "tokenizer.json", "config.json", "README.md"} <= set(hub.files)


@pytest.mark.usefixtures("no_model")
def test_push_without_a_login_costs_no_work(
    ready: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a login that is missed only when everything has been computed."""

    def nobody(_: HfApi) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "whoami", nobody)
    with pytest.raises(ConfigError, match=r"run hf auth login"):
        export(ready.base, ready.adapter, tmp_path / "small", push="somebody/small")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_upload_keeps_the_folder(
    hub: Hub, ready: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches work thrown away because the network broke, and a sentence that does not say how to go on."""

    def broken(*_: object, **__: object) -> None:
        raise ConnectionError("the line is dead")

    monkeypatch.setattr(HfApi, "upload_folder", broken)
    with pytest.raises(
        CheckpointError,
        match=r"is written and could not be uploaded \(the line is dead\); try again with hf upload",
    ):
        export(ready.base, ready.adapter, tmp_path / "small", push="somebody/small")
    assert stock_logits(tmp_path / "small", input_ids=token_ids(1, 5)).shape == (1, 5, VOCAB)


@pytest.mark.parametrize("name", ["three/part/name", "", "a name", "-/x"])
def test_a_name_that_cannot_be_one_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a name that only the hub refuses, once all is computed."""
    monkeypatch.setattr(HfApi, "whoami", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match=r"needs the name of a repository such as user/name, got"):
        logged_in(name)


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: HfApi) -> None:
        raise ConnectionError("no route\n  to host")

    monkeypatch.setattr(HfApi, "whoami", silent)
    with pytest.raises(ConfigError, match=r"^--push: the Hugging Face hub refuses .* \(no route to host\)$"):
        logged_in("somebody/small")
