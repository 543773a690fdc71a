"""Model and data that ship with the package, for examples and tests without a network.

There are a small language model, a shadow pretrained for it, and a subset of CLINC150. The README.md of each
names its sources and its licence. Imports nothing.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
CLINC150 = FOLDER / "clinc150"
SHADOW = FOLDER / "shadow"
