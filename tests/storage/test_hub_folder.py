"""Adapters of the hub: a cache as huggingface_hub lays it out stands in for it."""

from pathlib import Path

import pytest
from helpers.families import attached, perturb, tiny_model, token_ids
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError

from shadowpeft import CheckpointError, ShadowedModel
from shadowpeft.storage import hub_folder

COMMITS = {"main": "a" * 40, "older": "b" * 40}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> dict[str, ShadowedModel]:
    """Fill a cache of the hub, offline: two revisions of user/name, of which one lies in a subfolder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, models = tmp_path / "models--user--name", {}
    for seed, (revision, commit) in enumerate(COMMITS.items()):
        models[revision] = perturb(attached(tiny_model("llama")), seed=seed)
        place = {"main": "", "older": "below/it"}[revision]
        models[revision].save_pretrained(repository / "snapshots" / commit / place)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / revision).write_text(commit, encoding="utf-8")
    return models


def test_an_adapter_is_read_by_its_hub_id_revision_and_subfolder(cache):
    """Catches a revision or subfolder that is dropped: either has another adapter."""
    ids, places = token_ids(2, 7), {"main": {}, "older": {"revision": "older", "subfolder": "below/it"}}
    for revision, place in places.items():
        found = ShadowedModel.from_pretrained(tiny_model("llama"), "user/name", **place)
        assert found(ids).logits.equal(cache[revision](ids).logits)
    found.load_adapter("user/name", "main")
    assert found(ids).logits.equal(cache["main"](ids).logits)


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("user/other", {}, "there is no folder user/other here, the hub cannot be reached"),
        ("user/name", {"revision": "v9"}, "does not hold user/name at v9"),
        ("user/name", {"subfolder": "x"}, "there is no adapter folder|holds no shadow_config.json"),
        ("user/name", {"subfolder": "../x"}, "subfolder must be a path below"),
        ("nowhere", {}, "there is no adapter folder nowhere"),
        ("nowhere", {"revision": "v1"}, "a revision belongs to a hub id"),
        (Path("user/name"), {}, "there is no adapter folder user/name"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(cache, source, place, message):
    base = tiny_model("llama")
    with pytest.raises(CheckpointError, match=message):
        ShadowedModel.from_pretrained(base, source, **place)
    assert all(weight.requires_grad for weight in base.parameters())


def test_only_the_adapters_files_are_fetched_and_an_unknown_name_is_said(monkeypatch):
    asked = {}

    def refuse(repository, **kwargs):
        asked.update(kwargs)
        raise RepositoryNotFoundError("404", response=_Response())

    monkeypatch.setattr(hub_folder, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="no repository of that name on the hub"):
        hub_folder.local("user/name", ("a", "b"), revision="v1", subfolder="c")
    assert asked == {"revision": "v1", "allow_patterns": ["c/a", "c/b"]}


class _Response:
    request, headers, status_code = None, {}, 404


def test_a_folder_here_is_not_looked_up(tmp_path, monkeypatch):
    """Catches a request for a path that exists, such as run/adapter."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    monkeypatch.setattr(hub_folder, "snapshot_download", lambda *_, **__: 1 / 0)
    assert hub_folder.local("run/adapter", (), subfolder="x") == Path("run/adapter/x")
