"""What ships in the package: a small language model, a shadow pretrained for it, and a subset of CLINC150, each with its credit."""

from pathlib import Path

FOLDER = Path(__file__).parent
MODEL = FOLDER / "model"
CLINC150 = FOLDER / "clinc150"
SHADOW = FOLDER / "shadow"
