"""What the pages of the documentation hold: links, headings, blocks of code and commands."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))
site_hooks: Any = importlib.import_module("site_hooks")
PAGES = sorted(DOCS.rglob("*.md"))
SHELL = ("sh", "bash", "")
_PARSER = MarkdownIt("commonmark").enable("table")


def tokens(path: Path) -> Iterator[Token]:
    """Everything on a page, what stands in a line of text too; what the site puts in is there."""
    text = re.sub(
        r'^--8<-- "(.+)"$',
        lambda found: (ROOT / found[1]).read_text(encoding="utf-8"),
        path.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    for token in _PARSER.parse(site_hooks.on_page_markdown(text)):
        yield token
        yield from token.children or ()


def links(path: Path) -> list[str]:
    """Targets of links and pictures."""
    found = (t.attrGet("href") or t.attrGet("src") for t in tokens(path))
    return [str(target) for target in found if target]


def anchors(path: Path) -> set[str]:
    """The names that the site gives to headings: those of Python-Markdown's `toc`."""
    seen: Counter[str] = Counter()
    names, heading = set(), False
    for token in tokens(path):
        if token.type == "inline" and heading:
            text = "".join(t.content for t in token.children or ())
            name = slug(text)
            names.add(f"{name}_{seen[name]}" if seen[name] else name)
            seen[name] += 1
        heading = token.type == "heading_open"
    return names


def slug(text: str) -> str:
    """A heading's anchor.

    Example:
        >>> slug("What `--gap` does, and why")
        'what-gap-does-and-why'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def blocks(path: Path, *languages: str) -> list[str]:
    """Blocks of code in one of some languages; an indented block has none."""
    found = (t for t in tokens(path) if t.type in ("fence", "code_block"))
    return [t.content for t in found if t.info.split(" ")[0] in languages]


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command of ours on a page, without `tdistill` itself."""
    spans = [t.content for t in tokens(path) if t.type == "code_inline"]
    text = "\n".join([*blocks(path, *SHELL), *spans]).replace("\\\n", " ")
    for line in text.splitlines():
        found = re.match(r"\s*(?:\S+/|torchrun .*-m |accelerate .*-m )?tdistill\s+(.+)", line)
        if found:
            yield shlex.split(found[1], comments=True)
