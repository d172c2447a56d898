"""What documents point to is there: files that they name, and pages and sections that they link to."""

import re
from pathlib import Path

import pytest
from places import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    "splitfed",
    "clients",
    "server",
    "compression",
    "tests",
    "benchmarks",
    "scenarios",
    "sweeps",
    "examples",
    "docs",
)


def slug(heading: str) -> str:
    """Return the name under which a heading is linked to."""
    return re.sub(r"[^a-z0-9 _-]", "", heading.strip("# ").lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    # A module, a page, a program or a folder; what has none of these endings is a tag, a column or a pattern.
    ending = r"(?:\.(?:py|md|yaml|ipynb|toml|png)|/)"
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*{ending})`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        name, _, section = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if section:
            headings = re.findall(r"^#+ .*$", file.read_text(), re.M)
            assert section in map(slug, headings), f"{page.name}: {target}"
