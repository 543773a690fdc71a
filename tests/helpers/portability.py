"""The scripts of recipes/portability as modules, as they see each other when one of them is run."""

import sys

from helpers.recipes import ROOT

sys.path.append(str(ROOT / "recipes" / "portability"))

import adapters
import report
import resume
import upgrade

__all__ = ["adapters", "report", "resume", "upgrade"]
