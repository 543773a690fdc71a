"""The pages of a report."""

from shadowpeft.route.pages import Part, as_html, as_markdown

PART = Part(
    "Risk & share", "What <b> is.", ("", "kept"), [["a|b", "3"]], {"a curve": "data:image/png;base64,AA=="}
)


def test_markdown_holds_tables_and_names_the_pictures():
    page = as_markdown("Title", "Lead.", [PART], "report.html")
    assert page.startswith("# Title\n\nLead.\n\n## Risk & share\n\nWhat <b> is.\n\n|  | kept |\n")
    assert "| a/b | 3 |" in page
    assert page.endswith("The pictures are in report.html.\n")


def test_html_needs_nothing_else_and_escapes_what_it_is_given():
    """Catches an answer or a name that becomes a part of the page."""
    page = as_html("<script>", "Lead {x}.", [PART])
    assert "<title>&lt;script&gt;</title>" in page
    assert "What &lt;b&gt; is." in page
    assert '<img src="data:image/png;base64,AA==" alt="a curve">' in page
    assert "http" not in page
