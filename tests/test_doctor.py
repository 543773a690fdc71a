"""The facts that the doctor collects."""

from email.message import Message

from shadowpeft import doctor


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
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: package)
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: asked)
    lacks = ["torch>=99", "no-such-thing"]
    assert doctor.examine()["extras"] == {"new": lacks, "all": lacks, "old": []}
    monkeypatch.undo()

    def uninstalled(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "metadata", uninstalled)
    assert doctor.examine()["extras"] == {}
