"""Progress: a line now and then, or a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from tdistill import progress
from tdistill.errors import printable
from tdistill.progress import Progress, tell


class Clock:
    """Time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_elsewhere_it_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = Clock(monkeypatch)
    bar = Progress("rollouts", 100, done=20)
    for done, now in ((30, 110.0), (40, 120.0), (50, 130.0), (100, 180.0)):
        clock.now = now
        bar.update(done, "responses")
    bar.close()
    assert capsys.readouterr().out == "  rollouts: 40 of 100, 60 s left  responses\n"
    assert bar.done == 100


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    bar = Progress("train", 4, done=1)
    bar.update(4, "loss 1.000")
    bar.close()
    shown = sys.stdout.getvalue()
    assert "train" in shown
    assert "4/4" in shown
    assert "loss 1.000" in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext \N{GREEK SMALL LETTER PI}", "plain\n\ttext \N{GREEK SMALL LETTER PI}"),
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\rb\x08c\x7f\x9b31m", r"a\rb\x08c\x7f\x9b31m"),
        ("\u202eevil\u2069", r"\u202eevil\u2069"),
        ("\ud800", r"\ud800"),
    ],
)
def test_texts_of_others_cannot_act_on_the_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
):
    assert printable(text) == shown
    tell(text)
    assert capsys.readouterr().out == f"{shown}\n"
    tell(text, error=True)
    assert capsys.readouterr().err == f"{shown}\n"
