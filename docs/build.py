"""Build the site: gather the pages of the repository, check every link, and let Zensical write `site/`.

The pages are those of `docs/`, the records in `results/`, the recipes, and a few more. They link to each
other, and to files of the repository, as they stand there. Zensical wants all pages in one folder, so they
are copied to `build/pages`, with their links rewritten. Zensical itself checks that pages, anchors and names
exist. What it cannot see, a file that is no page, is checked here.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = "build/pages"
# Where pages stand in the site, by where they stand in the repository; the longest folder that fits counts.
HOMES = {
    "docs": "",
    "results": "records",
    "recipes": "recipes",
    "src/shadowpeft/embedded": "embedded",
    "CONTRIBUTING.md": "develop/contributing.md",
    "CHANGELOG.md": "develop/changelog.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
# The target of a link, or the name in a reference to the API.
_TARGET = re.compile(r"\[[^\]]*\][(\[]([^)\]]*)[)\]]")
_FENCE = re.compile(r"^\s*```")
# What mkdocstrings says of a name that the package does not have.
_GONE = re.compile(r"^mkdocstrings: (.+ could not be found)$", re.M)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# Zensical's warnings: what is wrong, then the file, the line and the column.
_WARNING = re.compile(r"Warning: (.+)\n.*?\[ (.+?):(\d+):(\d+) \]")


def home(path: Path, root: Path) -> str | None:
    """Return where a file of the repository stands in the site, or `None` if it is not part of it.

    A folder's `README.md` is its `index.md`, as Zensical's navigation wants it.
    """
    relative = path.relative_to(root).as_posix()
    for prefix, place in HOMES.items():
        if relative == prefix:
            return place
        if relative.startswith(prefix + "/"):
            inside = re.sub(r"(^|/)README\.md$", r"\1index.md", relative.removeprefix(prefix)[1:])
            return f"{place}/{inside}".lstrip("/")
    return None


def gather(root: Path, stage: Path) -> list[str]:
    """Copy all pages, and the files that they link to, into one folder.

    Args:
        root: the repository.
        stage: the folder; what was in it is removed.

    Returns:
        A sentence for each link that leads nowhere.
    """
    shutil.rmtree(stage, ignore_errors=True)
    faults: list[str] = []
    for page in pages(root):
        place = home(page, root)
        assert place is not None, "every page has a home"
        target = stage / place
        text = rewritten(page, target, root, stage=stage, faults=faults)
        # The site has a home page of its own in place of the README, whose links are checked all the same.
        if page != root / "README.md":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    # The theme's own additions, such as a style sheet.
    if (root / "docs" / "assets").is_dir():
        shutil.copytree(root / "docs" / "assets", stage / "assets", dirs_exist_ok=True)
    return faults


def pages(root: Path) -> list[Path]:
    """List the pages of the site as they stand in the repository."""
    found = []
    for prefix in HOMES:
        path = root / prefix
        found += [path] if path.is_file() else sorted(path.rglob("*.md"))
    return found


def rewritten(page: Path, target: Path, root: Path, stage: Path, faults: list[str]) -> str:
    """Return a page's text with its links as they must be in the stage, and copy the files that it links to.

    Args:
        page: the page in the repository.
        target: its place in the stage.
        root: the repository.
        stage: the folder of all pages.
        faults: gets a sentence for each link that leads nowhere.
    """
    in_code = False
    lines = []
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if _FENCE.match(line):
            in_code = not in_code
        if not in_code:
            place = f"{page.relative_to(root)}:{number}"
            move = partial(
                _moved, page=page, target=target, root=root, stage=stage, place=place, faults=faults
            )
            line = _LINK.sub(move, line)
        lines.append(line)
    return "\n".join(lines)


def _moved(
    link: re.Match[str], page: Path, target: Path, root: Path, stage: Path, place: str, faults: list[str]
) -> str:
    """Rewrite one link; a file that is no page is copied beside the site."""
    path = Path(os.path.normpath(page.parent / link[1]))
    if not path.exists() or root not in path.parents:
        faults.append(f"{place}: the link {link[1]} leads nowhere")
        return link[0]
    if path.is_dir():
        if not (path / "README.md").is_file():
            faults.append(f"{place}: the folder {link[1]} has no README.md to link to")
            return link[0]
        path = path / "README.md"
    there = home(path, root)
    if there is None:
        there = f"files/{path.relative_to(root).as_posix()}"
    copy = stage / there
    if path.suffix != ".md":
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    elif not there.startswith("files/"):
        return f"]({os.path.relpath(copy, target.parent)}{link[2] or ''})"
    return f"]({os.path.relpath(copy, target.parent)})"


def explain(output: str, root: Path, stage: Path) -> list[str]:
    """Turn the warnings into one line each: the page of the repository, what is wrong, the link."""
    written = [page for page in pages(root) if page != root / "README.md"]
    sources = {home(page, root): page.relative_to(root) for page in written}
    output = _COLOUR.sub("", output)
    lines = [f"API: {fault}" for fault in _GONE.findall(output)]
    for what, page, number, column in _WARNING.findall(output):
        text = (stage / page).read_text(encoding="utf-8").split("\n")[int(number) - 1]
        lines.append(f"{sources.get(page, page)}:{number}: {what}: {_link_at(text, int(column) - 1)}")
    return lines


def _link_at(text: str, position: int) -> str:
    """Return the target of the link that stands at a position of a line."""
    for found in _TARGET.finditer(text):
        if found.start() <= position < found.end():
            return found[1]
    return text[position:]


def main(root: Path = ROOT) -> int:
    """Build the site of a repository; return 0, or 1 after naming what is wrong."""
    stage = root / STAGE
    faults = gather(root, stage)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, encoding="utf-8")
    output = done.stdout + done.stderr
    # What leads nowhere at all is named once, not by Zensical again.
    named = {fault.partition(": ")[0] for fault in faults}
    warnings = explain(output, root, stage)
    for line in [*faults, *(line for line in warnings if line.partition(": ")[0] not in named)]:
        print(line, file=sys.stderr)
    if done.returncode and not warnings:
        print(_COLOUR.sub("", output), file=sys.stderr)
    if faults or done.returncode:
        return 1
    print(f"{len(pages(root))} pages in {root / 'site'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
