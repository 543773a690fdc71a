"""`shadowpeft compare`."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from shadowpeft.cli import FAILURE, INTERRUPTED, _runs
from shadowpeft.cli._libraries import require
from shadowpeft.compare.study import Study

if TYPE_CHECKING:
    from shadowpeft.compare.run import StudyResult

NEEDS = ("peft", "matplotlib", "rich", "accelerate", "datasets")


def run(settings: Study, json: bool = False, retry: bool = False, report_only: bool = False) -> int:
    """Train and measure methods side by side: equal budgets, equal search, the test split read once.

    Args:
        settings: the study.
        json: print the summary as JSON in place of the table.
        retry: run the cells again that failed in an earlier session, except where that could read the test
            split twice.
        report_only: only write table and plots again from the rows there are.
    """
    require("a study", NEEDS, extra="compare")
    from shadowpeft.compare.run import compare, report_again

    try:
        result = report_again(settings) if report_only else compare(settings, retry)
    except KeyboardInterrupt:
        _say(f"stopped; what was measured is kept; go on with the same command: {_runs.command()}")
        return INTERRUPTED
    _print(result, json)
    _say_what_is_missing(result)
    return 0 if result.done else FAILURE


def _print(result: "StudyResult", as_json: bool) -> None:
    from shadowpeft.cli._models import print_result
    from shadowpeft.compare.summary import terminal

    if as_json:
        print_result(asdict(result), as_json=True)
        return
    print(terminal(result.results))
    print(f"in full: {result.table}; every run: {result.rows}", file=sys.stderr)


def _say_what_is_missing(result: "StudyResult") -> None:
    """Say which cells failed, could not be run, or have yet to run."""
    for what, keys in (("failed", list(result.failed)), ("could not be run", result.missing)):
        if keys:
            _say(f"{len(keys)} of {result.cells} cells {what}, such as {keys[0]}; see {result.table}")
    if result.at_edge and not result.waiting.get("search"):
        at = result.at_edge[0]
        _say(
            f"searches whose best learning rate is at the edge of those tried: {len(result.at_edge)}, "
            f"such as {at.learning_rate:g}, the {at.side} of {at.method} on {at.model} and {at.task}; the "
            "best may lie beyond: give a new study more extensions, or other rates under search"
        )
    if result.waiting:
        waiting = sum(result.waiting.values())
        stages = ", ".join(f"{count} of the stage {stage}" for stage, count in result.waiting.items())
        _say(
            f"the study is not over: {waiting} of {result.cells} cells have yet to run ({stages}); "
            "the same command without --report-only goes on with them"
        )


def _say(message: str) -> None:
    print(f"shadowpeft compare: {message}", file=sys.stderr)
