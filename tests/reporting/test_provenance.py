"""Where and with what something was measured."""

import torch

from shadowpeft.reporting import provenance


def test_commit_of_a_copy_without_history(monkeypatch):
    """Catches rows from a rented machine whose code nobody knows, and a name that overrules the checkout's
    own."""
    monkeypatch.setenv("SHADOWPEFT_COMMIT", "1234abcd")
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: None)
    assert provenance.commit() == "1234abcd"
    monkeypatch.setattr(
        provenance, "_git", lambda folder, *words: {"rev-parse": "5678", "status": ""}.get(words[0], "")
    )
    assert provenance.commit() == "5678"
    monkeypatch.delenv("SHADOWPEFT_COMMIT")
    monkeypatch.setattr(provenance, "_git", lambda folder, *words: None)
    assert provenance.commit() is None


def test_versions_are_those_of_what_is_installed():
    """Catches a library that is not installed and stops a study, and one that is named by an alias."""
    found = provenance.versions("no-such-library")
    assert (found["torch"], found["no-such-library"]) == (torch.__version__, None)
    assert list(found)[:2] == ["shadowpeft", "python"]
    assert provenance.where_it_ran(torch.device("cpu"))["device"] == "cpu"
