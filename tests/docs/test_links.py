"""Every link on a page leads to a file and an anchor that are there, as `make docs` checks, too."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_pages import DOCS, PAGES, ROOT, anchors, links

MADE = {DOCS / "tutorial.ipynb"}  # by docs/site_hooks.py
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def broken(path: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    return [link for link in links(path) if not leads_somewhere(path, link)]


def leads_somewhere(path: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme in ("https", "mailto")
    target = (path.parent / parts.path).resolve() if parts.path else path
    # A site knows nothing outside its own folder.
    within = DOCS in target.parents or DOCS not in path.parents
    if target not in MADE and not (target.exists() and within):
        return False
    return not parts.fragment or parts.fragment in anchors(target)


@pytest.mark.parametrize("path", [*PAGES, *OTHERS], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path):
    assert broken(path) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n[a](#a-heading) [b](#none) [c](none.md) ![d](none.png)\n")
    assert broken(page) == ["#none", "none.md", "none.png"]


def test_a_heading_that_comes_twice_has_two_anchors(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Two `ways`, still\n\n## Again\n\n## Again\n")
    assert anchors(page) == {"two-ways-still", "again", "again_1"}
