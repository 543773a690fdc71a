"""How torch's threads wait is settled before torch is imported, and a user's own setting stands."""

import os
import subprocess
import sys

import pytest

from shadowpeft.cli._threads import sleep_while_waiting

NAMES = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "300", "KMP_BLOCKTIME": "0"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "0"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_what_the_user_set_stands(given, expected, monkeypatch):
    """Catches a setting of the user's that the command line overrules."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    monkeypatch.setattr(os, "environ", {**environment, **given})
    sleep_while_waiting()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == expected


def test_the_command_line_settles_it_before_torch():
    """Catches a setting that comes after OpenMP has read its environment."""
    code = (
        "import os, sys; from shadowpeft.cli import main; main(['--help']); "
        "assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert ran.stdout.split()[-1] == "300"
