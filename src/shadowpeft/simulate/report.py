"""The report of a simulation: what each strategy gets right, how long it takes, what it costs."""

from dataclasses import asdict
from pathlib import Path

from shadowpeft.reporting.tables import UNKNOWN, plural
from shadowpeft.route.pages import Part, as_html, as_markdown
from shadowpeft.simulate import plots
from shadowpeft.simulate.measures import Figures
from shadowpeft.simulate.run import Result
from shadowpeft.simulate.settings import WARM_UP
from shadowpeft.simulate.settling import too_short
from shadowpeft.simulate.strategies import CLOUD_ONLY, POLICY
from shadowpeft.storage import atomic

MARKDOWN, HTML = "simulation.md", "simulation.html"
_HEADS = (
    "", "right", "no answer", "sent", "instead", "false keeps", "false deferrals", "mean s", "p50 s",
    "p95 s", "p99 s", "cloud slots busy", "price of 1,000",
)  # fmt: skip
_COLUMNS = (
    "Right: share of all requests. Instead: answered by the edge because the cloud failed. False keep: a "
    "wrong answer of the edge that was kept. False deferral: a right one that was sent. p99: what 99 % of "
    "the answers do not exceed. Cloud slots busy: the mean."
)


def write_report(result: Result, folder: str | Path) -> None:
    """Write simulation.md and simulation.html.

    Args:
        result: the simulations.
        folder: where to write.

    Raises:
        CheckpointError: a file cannot be written.
    """
    fleets = result.system.fleets()
    parts = [_fleet(result, robots, explained=robots == fleets[0]) for robots in fleets]
    parts += [*_growth(result), _once(result), _assumed(result)]
    title, lead = "Edge and cloud, simulated", lead_of(result)
    atomic.write_together(
        Path(folder),
        {
            MARKDOWN: atomic.text(as_markdown(title, lead, parts, HTML)),
            HTML: atomic.text(as_html(title, lead, parts)),
        },
    )


def lead_of(result: Result) -> str:
    """Say in a few sentences what the policy does with the largest fleet that can be answered, beside the
    cloud alone."""
    fleets = sorted(result.system.fleets(), reverse=True)
    sentences = [_compared(result, robots) for robots in fleets if not _busy(result, robots)][:1]
    for robots in fleets:
        if busy := _busy(result, robots):
            sentences.append(f"With {_robots(robots)} requests come too fast for {' and for '.join(busy)}.")
    return " ".join(sentences)


def _compared(result: Result, robots: int) -> str:
    ours, cloud = result.mean(robots, POLICY), result.mean(robots, CLOUD_ONLY)
    text = (
        f"With {_robots(robots)} the policy sends {_percent(ours.sent)} of the requests to the cloud and "
        f"answers {_percent(ours.right)} rightly, where the cloud alone answers {_percent(cloud.right)}. "
        f"A mean answer takes {_seconds(ours.mean)} s in place of {_seconds(cloud.mean)} s, and 99 % are "
        f"there within {_seconds(ours.p99)} s in place of {_seconds(cloud.p99)} s."
    )
    return text + f" 1,000 requests cost {ours.cost:.4g} in place of {cloud.cost:.4g}." * (cloud.cost > 0)


def _busy(result: Result, robots: int) -> list[str]:
    """Return which of the policy and the cloud alone are overloaded by a fleet."""
    named = {"the policy": POLICY, "the cloud alone": CLOUD_ONLY}
    return [said for said, name in named.items() if _overloaded(result, result.mean(robots, name))]


# The parts


def _fleet(result: Result, robots: int, explained: bool) -> Part:
    system, means = result.system, result.means(robots)
    rows = [[name, *_cells(result, one)] for name, one in means.items()]
    text = (
        f"{system.requests:,} requests in {_hours(system.hours(robots))}, without the first "
        f"{_percent(WARM_UP, 0)}; the mean of {system.seeds} {plural(system.seeds, 'simulation')}."
    )
    if explained:
        text += f" {_COLUMNS}"
    if any(_overloaded(result, one) for one in means.values()):
        text += (
            " Overloaded: requests come faster than they can be answered, so that waiting has no figure; it "
            "would grow with the time that is simulated, and so would what fails."
        )
    if needed := too_short(result, robots):
        text += f" {unsettled(needed)}"
    calm = {name: one for name, one in means.items() if not _overloaded(result, one)}
    pictures = {}
    if calm:
        pictures["right answers by seconds"] = plots.right_by_seconds(calm, robots)
        pictures["price by wrong answers"] = plots.cost_by_right(calm, robots)
    return Part(_robots(robots).capitalize(), text, _HEADS, rows, pictures)


def _cells(result: Result, one: Figures) -> list[str]:
    waits = [one.mean, one.p50, one.p95, one.p99]
    return [
        *(
            _percent(share)
            for share in (
                one.right, one.unanswered, one.sent, one.instead, one.false_keeps, one.false_deferrals
            )
        ),
        *(["overloaded"] * 4 if _overloaded(result, one) else map(_seconds, waits)),
        f"{one.cloud_load:.2f} of {result.system.cloud_slots}",
        f"{one.cost:.4g}",
    ]  # fmt: skip


def _growth(result: Result) -> list[Part]:
    """Return the part on how waiting grows with the fleet, if there are several fleets."""
    fleets = result.system.fleets()
    if len(fleets) == 1:
        return []
    curves = {}
    for each in result.strategies:
        several = [result.mean(robots, each.name) for robots in sorted(fleets)]
        if not any(_overloaded(result, one) for one in several):
            curves[each.name] = several
    if not curves:
        return []
    text = "The same cloud for a growing fleet. A strategy that is overloaded with one of them is left out."
    heads = ("", *(f"p99 s, {_robots(robots)}" for robots in sorted(fleets)))
    rows = [[name, *(_seconds(one.p99) for one in each)] for name, each in curves.items()]
    picture = {"slowest answers by fleet": plots.slowest_by_fleet(sorted(fleets), curves)}
    return [Part("A growing fleet", text, heads, rows, picture)]


def _once(result: Result) -> Part:
    against = next(one for one in result.once if one.strategy == CLOUD_ONLY).seconds
    rows = [
        [
            one.strategy,
            f"{one.seconds:,.1f}",
            f"{one.seconds / against:.2f}",
            _percent(one.right, 2),
            _percent(one.sent),
        ]
        for one in result.once
    ]
    text = (
        f"All {len(result.strategies[0].kept):,} rows once, one after the other, while nothing fails and "
        "nobody else asks. This is the measurement of the paper's robot."
    )
    heads = ("", "seconds", "of cloud only", "right", "sent")
    return Part("One robot, every row once", text, heads, rows)


def _assumed(result: Result) -> Part:
    given = asdict(result.system)
    rows = [[name, "as measured" if value is None else str(value)] for name, value in given.items()]
    edge = next(each.edge for each in result.strategies if each.name == POLICY)
    cloud = next(each.cloud for each in result.strategies if each.name == POLICY)
    assert edge is not None
    assert cloud is not None
    means = (
        ("mean seconds of an answer of the edge", edge.seconds.mean() * result.system.edge_scale),
        ("mean seconds of one of the cloud", cloud.seconds.mean() * result.system.cloud_scale),
    )
    rows += [[name, f"{value:.4g}"] for name, value in means]
    text = (
        "Requests come at random times, those of each robot independently. A robot answers one request after "
        "the other; one that waits for the cloud does not keep it. The cloud begins anew with what it is "
        "sent. Rows whose seconds were not measured take those of a measured row. A call that the cloud has "
        "begun is not lost when an outage begins."
    )
    return Part("What was assumed", text, ("", "value"), rows)


# Words


def unsettled(needed: int) -> str:
    """Say that waits are too short, since queues are empty at the start of a simulation."""
    return (
        f"Too few requests for the queues to settle, so that waiting looks shorter than it is: give "
        f"--requests {needed} or more."
    )


def _overloaded(result: Result, one: Figures) -> bool:
    return one.is_overloaded(result.system)


def _robots(count: int) -> str:
    return "one robot" if count == 1 else f"{count:,} robots"


def _hours(hours: float) -> str:
    for unit, length in (("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= length:
            return f"{hours / length:,.1f} {unit}"
    return f"{3600 * hours:.3g} seconds"


def _seconds(value: float) -> str:
    return UNKNOWN if value != value else f"{value:.3f}"


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
