"""The pages of results/ and recipes/: every link leads somewhere, and every result has the one shape."""

import re
from pathlib import Path

import pytest

from shadowpeft.bench.settings import Bench, TrainBench

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/*/README.md"))
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PAGES += [*(ROOT / "recipes").rglob("*.md"), *RESULTS.rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.*)", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_results_and_recipes_lead_to_a_heading(page: Path) -> None:
    """Catches a result that moved, and a heading that was renamed under a link."""
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if target.is_relative_to(RESULTS) or target.is_relative_to(ROOT / "recipes"):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(RESULTS)))
def test_a_result_has_the_one_shape(folder: Path) -> None:
    """Catches a result that does not say what made it, one not in the index, a file that no page names."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    labels = re.findall(r"^\*\*(Question|Answer|Command|Made with|Files)\.\*\*", page, re.M)
    assert labels == ["Question", "Answer", "Command", "Made with", "Files"]
    assert f"({folder.relative_to(RESULTS)}/README.md)" in (RESULTS / "README.md").read_text(encoding="utf-8")
    pages = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.md"))
    files = [path.name for path in folder.iterdir() if path.name != "README.md"]
    assert [name for name in files if f"({name})" not in pages and f"({name}#" not in pages] == []


def test_every_folder_of_results_is_a_result() -> None:
    """Catches a record that lies beside the folders, and a folder without a page."""
    held = {path for path in RESULTS.rglob("*") if path.is_file()}
    assert {path for path in held if path.parent not in FOLDERS} == {RESULTS / "README.md"}


def test_bench_writes_beside_the_recorded_rows() -> None:
    """Catches a default of `shadowpeft bench` that leaves the place of its records."""
    assert TrainBench(shape="tiny").rows == Path("results/speed/bench/train.jsonl")
    assert Bench(shape="tiny").rows == Path("results/speed/bench/forward.jsonl")
    assert all((ROOT / settings.rows).is_file() for settings in (TrainBench(), Bench()))
