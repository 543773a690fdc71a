"""Numbers and tables as reports write them.

Shares are percentages, differences are in points, and a dash stands for an unknown value.
"""

from collections.abc import Iterable, Sequence

from shadowpeft.reporting.stats import Difference, Estimate, Interval

UNKNOWN = "-"
# Columns of words, which are aligned left; all others hold numbers.
_LEFT = (
    "method",
    "mode",
    "way",
    "model",
    "task",
    "metric",
    "tested on",
    "without",
    "timed",
    "what it is",
    "",
)

# The colours of Okabe and Ito, which colour-blind readers can distinguish, each with its own marker.
STYLES = {
    "base": ("#7f7f7f", "P"),
    "lora": ("#E69F00", "s"),
    "dora": ("#CC79A7", "D"),
    "peft-shadow": ("#56B4E9", "v"),
    "shadow": ("#0072B2", "o"),
    "shadow-paper": ("#009E73", "^"),
    "shadow-explicit": ("#D55E00", "X"),
    "shadow-frozen": ("#F0E442", "h"),
    "full": ("#000000", "*"),
}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a Markdown table; columns of words are aligned left, of numbers right."""
    rules = ["---" if head in _LEFT else "---:" for head in heads]
    return "\n".join(_table_row(cells) for cells in (heads, rules, *rows))


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def percent(value: Estimate | None) -> str:
    """Write a share as a percentage with its margin."""
    if value is None:
        return UNKNOWN
    if value.margin is None:
        return f"{100 * value.mean:.1f}"
    return f"{100 * value.mean:.1f} ± {100 * value.margin:.1f}"


def points(value: Difference | None) -> list[str]:
    """Write a difference in points: its value, the interval over items, and that over items and seeds."""
    if value is None:
        return [UNKNOWN] * 3
    return [f"{100 * value.value:+.2f}", interval(value.items), interval(value.items_and_seeds)]


def interval(interval: Interval | None) -> str:
    """Write an interval in points."""
    if interval is None:
        return UNKNOWN
    return f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def nats(value: Estimate | None) -> str:
    """Write a rise of the loss with its sign and its margin."""
    if value is None:
        return UNKNOWN
    if value.margin is None:
        return f"{value.mean:+.3f}"
    return f"{value.mean:+.3f} ± {value.margin:.3f}"


def whole(value: float | None) -> str:
    """Write a whole number with separators."""
    return number(value, 0)


def number(value: float | None, digits: int) -> str:
    """Write a number with so many digits after the point."""
    if value is None:
        return UNKNOWN
    return f"{value:,.{digits}f}"


def ratio(value: float | None) -> str:
    """Write a ratio."""
    if value is None:
        return UNKNOWN
    return f"{value:.3f}"


def one_line(text: str, most: int = 240) -> str:
    """Put a message on one line and cut it after `most` characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[: most - 3] + "..."


def plural(count: float, noun: str) -> str:
    """Return the noun, with an s if there is not exactly one."""
    return noun if count == 1 else f"{noun}s"
