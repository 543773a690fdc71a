"""What ships in the package keeps to its limits and gives credit."""

import re

from shadowpeft.demo.run import load_base
from shadowpeft.embedded import CLINC150, FOLDER, MODEL, SHADOW


def test_the_embedded_files_keep_to_their_limits():
    """Catches a model too large for the package, and a missing credit."""
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 16_000_000
    assert sum(parameter.numel() for parameter in load_base().parameters()) <= 8_000_000
    assert sum(path.stat().st_size for path in SHADOW.iterdir()) <= 4_000_000
    assert "CC BY 3.0" in (CLINC150 / "README.md").read_text(encoding="utf-8")
    assert re.search(r"licen[cs]e", (MODEL / "README.md").read_text(encoding="utf-8"), re.I)
    assert {path.name for path in FOLDER.iterdir()} >= {"model", "clinc150", "shadow"}
