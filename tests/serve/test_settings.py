"""What is served: settings that contradict each other are refused before anything is loaded."""

import subprocess
import sys

import pytest

from shadowpeft.errors import ConfigError
from shadowpeft.serve.settings import Serve

ROLES = {"edge": "detached", "cloud": "attached", "policy": "routing.json"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "there is nothing to serve"),
        ({"adapter": "a"}, "needs its base"),
        ({"model": "m", "edge": "small"}, "give --cloud and --policy, too"),
        ({"model": "m", "policy": "routing.json"}, "give --edge and --cloud, too"),
        ({"model": "m", **ROLES, "edge": "attached"}, "both attached"),
        ({"model": "m", **ROLES, "edge": "base", "cloud": "detached"}, "swap the two"),
        ({"model": "m", "adapter": ["x=a"], **ROLES, "edge": "x", "cloud": "x-detached"}, "swap the two"),
        ({"model": "m", "adapter": ["a", "b"]}, "names of their own"),
        ({"model": "m", "adapter": ["x=a", "x=b"]}, "names of their own"),
        ({"model": "m", "adapter": "base=a"}, "may have any name but"),
        ({"model": "m", "draft": "shadow"}, "give --draft with --adapter"),
        ({"model": "m", "hand_over": True}, "hand_over is about edge and cloud"),
        ({"model": "m", "upstream_timeout": 5.0}, "upstream_timeout is about edge and cloud"),
        ({"model": "m", "port": 70000}, "port must be"),
        ({"model": "m", "on_cloud_failure": "wait"}, "'answer' or '503'"),
        ({"model": "m", "timeout": 0.0}, "timeout must be above 0"),
    ],
)
def test_what_contradicts_itself_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Serve(**settings)


def test_adapters_by_name():
    assert Serve("m", "run/a").adapters() == {None: "run/a"}
    assert Serve("m", ["x=run/a", "y=b=c"]).adapters() == {"x": "run/a", "y": "b=c"}
    assert Serve("m").adapters() == {}


def test_the_settings_do_not_import_torch():
    """Catches a `--help` that waits, and a gateway before servers elsewhere that needs torch to run."""
    code = "import sys, shadowpeft.serve.settings, shadowpeft.serve.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
