"""Progress: a line a minute, a bar on a terminal, events for programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tdistill import progress
from tdistill.errors import printable
from tdistill.progress import Progress, emit, speak, tell


@pytest.fixture(autouse=True)
def in_words() -> Iterator[None]:
    speak("words")
    yield
    speak("words")


class Clock:
    """Time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)

    def run(self, bar: Progress, *moments: tuple[int, float]) -> None:
        """Let a bar reach each number at its time."""
        for done, self.now in moments:
            bar.update(done, "loss 1.250")
        bar.close()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_elsewhere_it_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = Clock(monkeypatch)
    bar = Progress("train kd", 100, "updates", done=20)
    clock.run(bar, (30, 110.0), (40, 150.0), (50, 160.0), (51, 219.0), (80, 220.0), (100, 300.0))
    assert capsys.readouterr().out.splitlines() == [
        "  train kd: 50 of 100 updates, 30/min, 1 min 40 s left, loss 1.250",
        "  train kd: 80 of 100 updates, 30/min, 40.0 s left, loss 1.250",
    ]
    assert bar.done == 100


def test_what_was_done_before_counts_for_no_rate(monkeypatch: pytest.MonkeyPatch):
    clock = Clock(monkeypatch)
    bar = Progress("rollouts", 100, "responses", done=60)
    assert (bar.rate, bar.seconds_left) == (0.0, None)
    clock.now += 10.0
    bar.advance(20)
    assert (bar.rate, bar.seconds_left) == (2.0, 10.0)


def test_on_a_terminal_it_is_a_bar(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    bar = Progress("train", 4, "updates", done=1)
    clock.run(bar, (4, 101.5))
    shown = sys.stdout.getvalue()
    assert "train" in shown
    assert "4/4" in shown
    assert "2/s" in shown
    assert "loss 1.250" in shown


def test_quiet_tells_only_what_goes_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    clock = Clock(monkeypatch)
    speak("quiet")
    tell("[rollouts]")
    emit("stage", name="rollouts")
    bar = Progress("rollouts", 100)
    bar.note("leak rises")
    clock.run(bar, (50, 300.0))
    tell("error: no room", error=True)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "  warning: leak rises\nerror: no room\n"


def test_programs_get_events(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    clock = Clock(monkeypatch)
    speak("json")
    tell("a\x1b[2J\u2028b")
    emit("log", what="train kd", step=3, loss=float("nan"), leak=0.25)
    bar = Progress("train kd", 100, "updates")
    clock.run(bar, (10, 100.5), (20, 102.0), (100, 102.5))
    bar.note("leak rises")
    tell("no room", error=True)
    said = capsys.readouterr()
    assert said.err == "no room\n"
    assert said.out.isascii()
    assert "\x1b" not in said.out
    found = events(said.out)
    assert [event.pop("event") for event in found] == [
        "message",
        "log",
        "progress",
        "progress",
        "warning",
        "error",
    ]
    assert all(event.pop("time") > 1e9 for event in found)
    assert found[0] == {"text": "a\x1b[2J\u2028b"}
    assert found[1] == {"what": "train kd", "step": 3, "loss": None, "leak": 0.25}
    assert found[2] == {
        "what": "train kd",
        "done": 20,
        "total": 100,
        "unit": "updates",
        "rate": 10.0,
        "seconds_left": 8.0,
        "note": "loss 1.250",
    }
    assert (found[3]["done"], found[3]["seconds_left"]) == (100, 0.0)
    assert found[4:] == [{"what": "train kd", "text": "leak rises"}, {"text": "no room"}]


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
