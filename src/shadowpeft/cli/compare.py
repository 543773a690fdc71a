"""`shadowpeft compare`."""

import importlib.util
import shlex
import sys
from dataclasses import asdict

from shadowpeft.cli import FAILURE, INTERRUPTED
from shadowpeft.compare.study import Study
from shadowpeft.errors import UserError

NEEDS = ("peft", "matplotlib", "rich", "accelerate", "datasets")


def run(settings: Study, json: bool = False, retry: bool = False, report_only: bool = False) -> int:
    """Train and measure methods side by side: equal budgets, equal search, the test split read once.

    Args:
        settings: the study.
        json: print the summary as JSON in place of the table.
        retry: run the cells again that failed in an earlier session, except where that could read the test split twice.
        report_only: only rewrite table and plots from the rows there are.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a study needs {', '.join(missing)}; pip install 'shadowpeft[compare]'")
    from shadowpeft.compare.run import compare, report_again

    try:
        result = report_again(settings) if report_only else compare(settings, retry)
    except KeyboardInterrupt:
        words = shlex.join(sys.argv[1:])
        print(
            f"shadowpeft compare: stopped; what was measured is kept; go on with the same command: shadowpeft {words}",
            file=sys.stderr,
        )
        return INTERRUPTED
    from shadowpeft.cli._models import print_result
    from shadowpeft.compare.summary import terminal

    if json:
        print_result(asdict(result), as_json=True)
    else:
        print(terminal(result.results))
        print(f"in full: {result.table}; every run: {result.rows}", file=sys.stderr)
    for what, keys in (("failed", list(result.failed)), ("could not be run", result.missing)):
        if keys:
            print(
                f"shadowpeft compare: {len(keys)} of {result.cells} cells {what}, such as {keys[0]}; see {result.table}",
                file=sys.stderr,
            )
    if result.waiting:
        waiting = sum(result.waiting.values())
        stages = ", ".join(f"{count} of the stage {stage}" for stage, count in result.waiting.items())
        print(
            f"shadowpeft compare: the study is not over: {waiting} of {result.cells} cells have yet to run ({stages}); "
            "the same command without --report-only goes on with them",
            file=sys.stderr,
        )
    return 0 if result.done else FAILURE
