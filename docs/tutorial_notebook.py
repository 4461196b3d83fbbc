"""The tutorial as a notebook: docs/tutorial.md is the one source of both.

Run ``python docs/tutorial_notebook.py OUT.ipynb`` from the root of a checkout, as ``make notebook``
does. Blocks of Python and of bash become cells, all else is text between them.
"""

from __future__ import annotations

import sys
from pathlib import Path

TUTORIAL = Path(__file__).parent / "tutorial.md"
HEADER = """---
jupyter:
  kernelspec: {display_name: Python 3, language: python, name: python3}
---
"""


def as_notebook() -> str:
    """The notebook as JSON, its cells not yet run."""
    import jupytext

    notebook = jupytext.reads(HEADER + TUTORIAL.read_text(encoding="utf-8"), fmt="md")
    return jupytext.writes(notebook, fmt="ipynb")


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(as_notebook(), encoding="utf-8")
