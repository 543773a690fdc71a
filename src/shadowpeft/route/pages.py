"""A report's pages: the same parts as one Markdown file, and as one HTML file with the pictures."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shadowpeft.reporting.tables import table


@dataclass(frozen=True)
class Part:
    """A part of the report.

    Attributes:
        title: its heading.
        text: a paragraph.
        heads: of its table.
        rows: of its table.
        pictures: what each shows, and its data.
    """

    title: str
    text: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)


def as_markdown(title: str, lead: str, parts: Sequence[Part], pictures: str) -> str:
    """Lay out a report as Markdown; `pictures` is the name of the file that shows them."""
    blocks = [f"# {title}", lead]
    for part in parts:
        blocks += [f"## {part.title}", part.text, table(part.heads, part.rows)]
    return "\n\n".join([*blocks, f"The pictures are in {pictures}."]) + "\n"


def as_html(title: str, lead: str, parts: Sequence[Part]) -> str:
    """Lay out a report as one page of HTML that needs nothing else."""
    blocks = []
    for part in parts:
        pictures = "".join(
            f'<img src="{data}" alt="{html.escape(shown)}">' for shown, data in part.pictures.items()
        )
        blocks.append(
            f"<h2>{html.escape(part.title)}</h2><p>{html.escape(part.text)}</p>{pictures}"
            f'<div class="wide">{_html_table(part)}</div>'
        )
    return _PAGE.format(title=html.escape(title), lead=html.escape(lead), parts="\n".join(blocks))


def _html_table(part: Part) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in part.heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in part.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; }}
body {{ max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; font-size: .9rem; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }}
td {{ white-space: nowrap; }} th {{ vertical-align: bottom; }}
.wide {{ overflow-x: auto; }}
img {{ max-width: min(100%, 40rem); display: block; }}
</style></head><body>
<h1>{title}</h1>
<p>{lead}</p>
{parts}
</body></html>
"""
