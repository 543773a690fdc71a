"""The pages of the site: links, names and paths are true, and a fault fails the build by its name."""

import importlib
import re
from pathlib import Path

import pytest
from helpers.pages import DOCS, tool
from test_layers import LAYERS

import shadowpeft

ROOT = DOCS.parent
PACKAGE = Path(shadowpeft.__file__).parent
build, generate = tool("build"), tool("generate")
TOP_LEVEL = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()} - {"__init__", "__main__"}
# Endings of file names, which look like dotted names.
FILES = {"gguf", "json", "jsonl", "md", "npz", "png", "py", "safetensors", "txt", "yaml"}


def spans(page: Path) -> list[str]:
    """List what a page shows as inline code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^::: (\S+)", text, re.M)


def dotted_names(page: Path) -> list[str]:
    """List the names of the package on a page, with `shadowpeft.` or without, and with a call or without."""
    found = []
    for span in spans(page):
        name = re.match(r"(?:shadowpeft\.)?([a-z_]\w*(?:\.\w+)+)(?:\(|$)", span)
        # `model.detached()` is a call of a variable; without `shadowpeft.` only a plain name is one of ours.
        if name is None or (span.endswith(")") and not span.startswith("shadowpeft.")):
            continue
        if name[1].split(".")[0] in TOP_LEVEL and name[1].split(".")[-1] not in FILES:
            found.append(name[1])
    return found


def resolve(name: str) -> object:
    """Import the longest module that a name begins with, then look up the rest."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["shadowpeft", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def test_dotted_names_import():
    """Catches a name on a page that the code no longer has."""
    names = {(page.name, name) for page in DOCS.rglob("*.md") for name in dotted_names(page)}
    assert ("method.md", "ops.reference.inject") in names
    assert ("python.md", "config.ShadowConfig") in names
    broken = []
    for page, name in sorted(names):
        try:
            resolve(name)
        except (ModuleNotFoundError, AttributeError):
            broken.append(f"{page}: {name}")
    assert not broken


def test_a_name_that_is_gone_is_noticed():
    """Catches a check that resolves anything."""
    assert callable(resolve("ops.reference.inject"))
    with pytest.raises(AttributeError):
        resolve("ops.reference.nothing")
    with pytest.raises(ModuleNotFoundError):
        resolve("nowhere.nothing")


def test_paths_exist():
    """Catches a file on a page that was moved."""
    missing = []
    for page in DOCS.rglob("*.md"):
        for span in spans(page):
            if (
                not re.fullmatch(r"[\w./-]+\.py|(?:src|tests|recipes|docs)/[\w./-]*/", span)
                or "/" not in span
            ):
                continue
            # `x/y.py` stands for any file.
            if "x/" not in span and not any((place / span).exists() for place in (ROOT, PACKAGE)):
                missing.append(f"{page.name}: {span}")
    assert not missing


def test_the_page_of_the_architecture_has_the_layers_of_the_code():
    """Catches a folder that moved to another layer, or a new one, without its line on the page."""
    page = (DOCS / "develop" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| (.+?) \|", page, re.M)
    assert [set(re.findall(r"`(\w+)`", row)) for row in rows] == LAYERS


def test_generated_pages_are_fresh():
    """Catches a flag, a help text or a family that changed without its page; run python docs/generate.py."""
    for path, text in generate.generated().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_links_lead_somewhere(tmp_path):
    """Catches a link in the documentation, a record or a recipe to a file that is not there."""
    assert build.gather(ROOT, tmp_path / "pages") == []
    assert (tmp_path / "pages" / "index.md").is_file()


def test_every_page_is_in_the_navigation():
    """Catches a page that nobody can find."""
    named = set(re.findall(r'"([\w/.-]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8")))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert pages <= named


def write_site(root: Path, index: str) -> None:
    (root / "docs" / "guides").mkdir(parents=True)
    (root / "docs" / "index.md").write_text(index, encoding="utf-8")
    (root / "docs" / "guides" / "train.md").write_text("# Train\n\n## Data\n", encoding="utf-8")
    (root / "results" / "a").mkdir(parents=True)
    (root / "results" / "a" / "README.md").write_text(
        "# A\n\n[guide](../../docs/guides/train.md#data)\n", encoding="utf-8"
    )
    (root / "results" / "a" / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    (root / "zensical.toml").write_text(
        '[project]\nsite_name = "x"\ndocs_dir = "build/pages"\nsite_dir = "site"\n'
        "[project.theme]\nfont = false\n"
        f"[project.plugins.mkdocstrings.handlers.python]\npaths = ['{PACKAGE.parent}']\n",
        encoding="utf-8",
    )


def test_links_are_rewritten(tmp_path):
    """Catches a link that is right in the repository and wrong in the site."""
    write_site(
        tmp_path,
        "# X\n\n[a](../results/a/README.md#a) [b](../results/a/rows.jsonl) [c](../results/a)\n\n"
        "```\n[d](nowhere.md)\n```\n[e](https://example.org/x.md) [f](#x)\n",
    )
    assert build.gather(tmp_path, tmp_path / "build" / "pages") == []
    pages = tmp_path / "build" / "pages"
    text = (pages / "index.md").read_text(encoding="utf-8")
    assert "[a](records/a/index.md#a) [b](records/a/rows.jsonl) [c](records/a/index.md)" in text
    assert "[d](nowhere.md)" in text
    assert "[e](https://example.org/x.md) [f](#x)" in text
    assert "(../../guides/train.md#data)" in (pages / "records" / "a" / "index.md").read_text(
        encoding="utf-8"
    )
    assert (pages / "records" / "a" / "rows.jsonl").is_file()


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("gone.md", "docs/index.md:3: the link gone.md leads nowhere"),
        ("../results/a/gone.jsonl", "docs/index.md:3: the link ../results/a/gone.jsonl leads nowhere"),
        ("guides", "docs/index.md:3: the folder guides has no README.md to link to"),
        ("../../outside.md", "docs/index.md:3: the link ../../outside.md leads nowhere"),
    ],
)
def test_a_broken_link_is_named(tmp_path, link, fault):
    """Catches a link that leads nowhere, and a message that does not say where it stands."""
    write_site(tmp_path, f"# X\n\n[a]({link})\n")
    assert build.gather(tmp_path, tmp_path / "build" / "pages") == [fault]


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("[a](guides/train.md#gone)", "docs/index.md:3: anchor does not exist: guides/train.md#gone"),
        ("[a](#gone)", "docs/index.md:3: anchor does not exist: #gone"),
        ("[a](gone.md)", "docs/index.md:3: the link gone.md leads nowhere"),
        ("::: shadowpeft.errors.Gone", "API: shadowpeft.errors.Gone could not be found"),
        ("[a](guides/train.md#data)", ""),
    ],
)
def test_what_does_not_resolve_fails_the_build(tmp_path, capsys, link, fault):
    """Catches a build that passes over an anchor or a name that is not there."""
    pytest.importorskip("zensical")
    write_site(tmp_path, f"# X\n\n{link}\n")
    assert build.main(tmp_path) == bool(fault)
    assert capsys.readouterr().err.strip() == fault
    if not fault:
        page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?:', page)
