"""How the report writes numbers and tables: shares as percentages, differences in points, a dash for what is unknown."""

from collections.abc import Iterable, Sequence

from shadowpeft.reporting.stats import Difference, Estimate, Interval

_LEFT = ("method", "mode", "model", "task", "metric", "tested on", "timed", "")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; columns of words to the left, of numbers to the right."""
    rules = ["---" if head in _LEFT else "---:" for head in heads]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (heads, rules, *rows)
    )


def percent(value: Estimate | None) -> str:
    """Write a share as a percentage with its margin."""
    if value is None:
        return "-"
    return (
        f"{100 * value.mean:.1f}"
        if value.margin is None
        else f"{100 * value.mean:.1f} ± {100 * value.margin:.1f}"
    )


def points(value: Difference | None) -> list[str]:
    """Write a difference in points: value, interval over items, interval over items and seeds."""
    if value is None:
        return ["-", "-", "-"]
    return [f"{100 * value.value:+.2f}", interval(value.items), interval(value.items_and_seeds)]


def interval(interval: Interval | None) -> str:
    """Write an interval in points."""
    return "-" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def nats(value: Estimate | None) -> str:
    """Write a rise of the loss with its sign."""
    if value is None:
        return "-"
    return f"{value.mean:+.3f}" if value.margin is None else f"{value.mean:+.3f} ± {value.margin:.3f}"


def whole(value: float | None) -> str:
    """Write a whole number with separators."""
    return "-" if value is None else f"{value:,.0f}"


def number(value: float | None, digits: int) -> str:
    """Write a number with so many digits."""
    return "-" if value is None else f"{value:,.{digits}f}"


def ratio(value: float | None) -> str:
    """Write a ratio."""
    return "-" if value is None else f"{value:.3f}"


def one_line(text: str, most: int = 240) -> str:
    """Put a message on one line, cut where it is too long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."


# Okabe and Ito's colours, told apart by colour-blind readers, each with a marker of its own.
STYLES = {
    "base": ("#7f7f7f", "P"),
    "lora": ("#E69F00", "s"),
    "dora": ("#CC79A7", "D"),
    "peft-shadow": ("#56B4E9", "v"),
    "shadow": ("#0072B2", "o"),
    "shadow-paper": ("#009E73", "^"),
    "shadow-explicit": ("#D55E00", "X"),
    "full": ("#000000", "*"),
}
