"""Take the pictures of the page, of the chat and of progress, from a run that is there.

Run ``python docs/figures/screens.py RUN [FOLDER] --ask LINE``, where a line is one of the chat; the
files go next to this script or into FOLDER. It needs the extra ``browser`` and Debian's chromium,
and opens no network. Pictures of a terminal are of the real command in a terminal of its own,
drawn as HTML.
"""

from __future__ import annotations

import argparse
import html
import os
import pty
import re
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from itertools import groupby
from pathlib import Path
from termios import TIOCSWINSZ
from typing import Any

import pyte
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

PAGES = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
PARTS = [
    ("scores", 1280, "light"),
    ("curves", 1280, "light"),
    ("samples", 1280, "dark"),
    ("differences", 390, "light"),
]
WIDE, NARROW, LINES, FEW, MOST_SECONDS = 110, 46, 24, 14, 600.0
INK, PAPER = "#e6e6e6", "#16181d"
COLOURS = {
    "black": "#3b4048",
    "red": "#f0716b",
    "green": "#8cc265",
    "brown": "#d9a65a",
    "blue": "#6cb0f5",
    "magenta": "#c98be0",
    "cyan": "#5cc1c9",
    "white": INK,
}


class Terminal:
    """A command in a terminal of its own, and what it shows by now."""

    def __init__(self, words: list[str], columns: int, lines: int = LINES) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self._pid, self._end = pty.fork()
        if self._pid == 0:
            os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(lines)}
            os.execv(sys.executable, [sys.executable, "-m", "tdistill", *words])
        ioctl(self._end, TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, seen: Callable[[str], bool]) -> None:
        """Read on until the screen shows something."""
        begun = time.monotonic()
        while not seen("\n".join(self.screen.display)):
            ready, _, _ = select.select([self._end], [], [], 1.0)
            if ready:
                self._stream.feed(os.read(self._end, 65536))
            if time.monotonic() - begun > MOST_SECONDS:
                raise TimeoutError("\n".join(self.screen.display))

    def type(self, line: str) -> None:
        """What a person types."""
        os.write(self._end, f"{line}\n".encode())

    def close(self) -> None:
        """End the command."""
        os.kill(self._pid, signal.SIGTERM)
        os.close(self._end)
        os.waitpid(self._pid, 0)

    def rows(self) -> Iterator[str]:
        """The lines of the screen that are not empty at the end, as HTML."""
        buffer, columns = self.screen.buffer, range(self.screen.columns)
        used = [y for y in range(self.screen.lines) if self.screen.display[y].strip()]
        for y in range(max(used) + 1):
            cells = [buffer[y][x] for x in columns]
            yield "".join(
                f'<span style="{style}">{html.escape("".join(c.data for c in run))}</span>'
                for style, run in groupby(cells, style_of)
            )


def style_of(cell: Any) -> str:
    """Colours and weight of a character."""
    ink, paper = (named(cell.fg, INK), named(cell.bg, "none"))
    weight = ";font-weight:bold" if cell.bold else ""
    return f"color:{ink};background:{paper}{weight}"


def named(colour: str, usual: str) -> str:
    """A colour of the terminal; pyte gives names, or digits of a number."""
    if colour == "default":
        return usual
    plain = colour.removeprefix("bright")
    return COLOURS.get(plain, f"#{colour}")


@contextmanager
def terminal(words: list[str], columns: int, lines: int = LINES) -> Iterator[Terminal]:
    """A command that ends with the block."""
    opened = Terminal(words, columns, lines)
    try:
        yield opened
    finally:
        opened.close()


def draw_terminal(browser: Browser, shown: Terminal, path: Path) -> None:
    """The screen of a terminal as a picture."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    style = (
        f"display:inline-block;margin:0;padding:16px 18px;background:{PAPER};color:{INK};"
        "border-radius:8px;font:14px/1.35 'DejaVu Sans Mono',monospace;white-space:pre"
    )
    text = "\n".join(shown.rows())
    page.set_content(f'<body style="margin:0"><pre id="t" style="{style}">{text}</pre></body>')
    page.locator("#t").screenshot(path=path, omit_background=True)
    page.close()
    smaller(path)


def draw_page(browser: Browser, report: Path, folder: Path) -> None:
    """The top of the page in every width and scheme, and some of its parts."""
    shots = [("top", *shot) for shot in PAGES] + PARTS
    for part, width, scheme in shots:
        height = 900 if width > 800 else 844
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        page.goto(report.resolve().as_uri())
        if part != "top":
            page.evaluate(f"document.querySelector('#{part}').scrollIntoView()")
        path = folder / f"page_{part}_{width}_{scheme}.png"
        page.screenshot(path=path)
        page.close()
        smaller(path)


def draw_chat(browser: Browser, run: Path, asked: list[str], folder: Path) -> None:
    """A conversation, wide and narrow."""
    for name, columns in (("chat", WIDE), ("chat_narrow", NARROW)):
        with terminal(["chat", str(run), "--max-new-tokens", "40"], columns) as chat:
            chat.until(lambda text: text.rstrip().endswith(">"))
            for line in asked:
                chat.type(line)
                chat.until(lambda text, line=line: answered(text, line))
            draw_terminal(browser, chat, folder / f"{name}.png")


def answered(text: str, line: str) -> bool:
    """Whether the prompt stands below the answers to a line."""
    return line in text and text.rstrip().endswith("\n>")


def draw_progress(browser: Browser, run: Path, folder: Path) -> None:
    """The same run again, from its beginning, in the midst of its last training."""
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place, "recipe.yaml")
        shutil.copy(run / "recipe.resolved.yaml", recipe)
        words = ["run", str(recipe), "--out", str(Path(place, "run"))]
        with terminal(words, WIDE, FEW) as shown:  # so few that no path of this machine is left
            shown.until(lambda text: any(halfway(line) for line in text.splitlines()))
            draw_terminal(browser, shown, folder / "progress.png")


def halfway(line: str) -> bool:
    """Whether a line is the bar of an objective's training that is half done."""
    counts = re.search(r"train (?!start).* (\d+)/(\d+) ", line)
    return counts is not None and 0.4 <= int(counts[1]) / int(counts[2]) <= 0.95


def smaller(path: Path) -> None:
    """The same picture in fewer bytes: colours are kept, since lines are told apart by them."""
    Image.open(path).save(path, optimize=True)


def main() -> None:
    """All pictures of a run."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("run", type=Path)
    words.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    words.add_argument("--ask", action="append", default=[])
    words.add_argument("--only", choices=["page", "chat", "progress"], action="append")
    given = words.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        wanted = given.only or ["page", "chat", "progress"]
        if "page" in wanted:
            draw_page(browser, given.run / "report.html", given.folder)
        if "chat" in wanted:
            draw_chat(browser, given.run, given.ask, given.folder)
        if "progress" in wanted:
            draw_progress(browser, given.run, given.folder)
        browser.close()


if __name__ == "__main__":
    main()
