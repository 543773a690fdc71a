"""The facts that the doctor collects."""

from email.message import Message

from shadowpeft.doctor import machine


def test_doctor_names_what_an_extra_lacks(monkeypatch):
    """Catches an extra called complete because nothing was compared, and a crash where none is installed."""
    asked = [
        "torch>=2.11",
        'torch>=99; extra == "new"',
        'no-such-thing; extra == "new"',
        'shadowpeft[new]; extra == "all"',
        'torch; extra == "old"',
    ]
    package = Message()
    for extra in ("new", "all", "old"):
        package["Provides-Extra"] = extra
    monkeypatch.setattr(machine.metadata, "metadata", lambda _: package)
    monkeypatch.setattr(machine.metadata, "requires", lambda _: asked)
    lacks = ["torch>=99", "no-such-thing"]
    assert machine.examine()["extras"] == {"new": lacks, "all": lacks, "old": []}
    monkeypatch.undo()

    def uninstalled(name):
        raise machine.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "metadata", uninstalled)
    assert machine.examine()["extras"] == {}
