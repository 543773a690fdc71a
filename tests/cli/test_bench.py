"""`shadowpeft bench`: its parts; `tests/bench` runs them."""

from shadowpeft.cli import PARTS, bench


def test_every_part_has_its_function():
    """Catches a part that the help lists and the verb lacks, or the other way round."""
    assert list(bench.PARTS) == list(PARTS["bench"])
