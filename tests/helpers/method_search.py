"""The scripts of recipes/method_search as modules, as they see each other when one of them is run."""

import sys

from helpers.recipes import ROOT

sys.path.append(str(ROOT / "recipes" / "method_search"))

import change
import few_rows
import few_rows_report
import frozen_sibling
import frozen_sibling_report
import head_rate
import head_rate_report
import kept
import measurements
import mixed_answers
import paired_runs
import places
import planning
import rates
import robustness
import robustness_report
import row_draws
import search
import step_times
import steps
import steps_report

__all__ = [
    "change",
    "few_rows",
    "few_rows_report",
    "frozen_sibling",
    "frozen_sibling_report",
    "head_rate",
    "head_rate_report",
    "kept",
    "measurements",
    "mixed_answers",
    "paired_runs",
    "places",
    "planning",
    "rates",
    "robustness",
    "robustness_report",
    "row_draws",
    "search",
    "step_times",
    "steps",
    "steps_report",
]
