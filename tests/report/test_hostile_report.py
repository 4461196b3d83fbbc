"""Texts of models and data cannot act where they are shown."""

from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64decode, b64encode
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tdistill.report import sample_panel
from tdistill.report.downloads import downloads
from tdistill.report.page import render, write_report
from tdistill.report.result import Result, result_of

EXAMPLE = json.loads((Path(__file__).parent / "metrics_example.json").read_text())
ACTIVE = {"script", "iframe", "object", "embed", "link", "meta", "base", "form", "img", "image"}
ATTACKS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "<img src=x onerror=alert(1)>",
    "</title></svg><iframe src=javascript:alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "\ud800",
    "\x00\x1b[2J",
    "\x9b31m\x07\x08",
]
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class Seen(HTMLParser):
    """Elements that act, and attributes that do."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        handlers = [name for name, _ in attrs if name.startswith("on")]
        links = [
            v for name, v in attrs if name in ("href", "src") and not (v or "").startswith("#")
        ]
        self.found += [tag] * (tag in ACTIVE) + handlers + [str(link) for link in links]


def acting(page: str) -> list[str]:
    seen = Seen()
    seen.feed(page)
    return sorted(seen.found)


def everywhere(text: str) -> Result:
    """The example with a text in every place that a model, a prompt or an error fills."""
    plain: dict[str, Any] = json.loads(json.dumps(EXAMPLE))
    for sample in plain["samples"]:
        sample["prompt"] = text
        sample["responses"] = dict.fromkeys(sample["responses"], text)
    for trace in plain["reward_traces"]:
        trace["prompt"] = text
        trace["tokens"] = [text] * len(trace["tokens"])
    for trace in plain["value_traces"]:
        trace["prompt"] = text
    plain["failed"] = {text: text}
    plain["warnings"] = {text: [text]}
    plain["cache"]["teacher"] = text
    plain["recipe"][text] = {text: text}
    return result_of(plain)


@cache
def harmless() -> list[str]:
    """What acts on the page when all texts are plain."""
    return acting(render(everywhere("plain")))


def test_the_content_policy_admits_the_one_script_of_the_page_alone():
    page = render(result_of(EXAMPLE))
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.S)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    own = b64encode(sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{own}'" in policy
    assert "innerHTML" not in script and "eval" not in script


def test_a_spreadsheet_takes_no_name_for_a_formula():
    plain = json.loads(json.dumps(EXAMPLE).replace('"sft"', '"=1+1"'))
    for file in downloads(result_of(plain)):
        text = b64decode(file.address.partition("base64,")[2]).decode()
        rows = list(csv.DictReader(text.splitlines()))
        assert len(rows) == file.rows
        assert "'=1+1" in {row["model"] for row in rows}
        assert not any(row["model"].startswith("=") for row in rows)


def test_the_page_itself_acts_with_known_elements_only():
    assert acting(render(result_of(EXAMPLE))) == harmless()


@pytest.mark.parametrize("text", ATTACKS)
def test_texts_stay_texts_on_the_page(text: str):
    page = render(everywhere(text))
    assert acting(page) == harmless()
    assert not CONTROLS.search(page)
    if "<" in text:
        assert text not in page


@settings(max_examples=3)
@given(st.text(alphabet=st.sampled_from("<>\"'&/={}%-!sx \n\x1b\ud800"), min_size=1, max_size=30))
def test_any_text_stays_a_text(text: str):
    page = render(everywhere(text))
    assert acting(page) == harmless()
    assert not CONTROLS.search(page)


def test_controls_are_written_out_and_marks_of_direction_stay(tmp_path: Path):
    path = write_report(everywhere("a\x1b[31m\x07\x9b\u200fb\r\nc"), tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "a\\x1b[31m\\x07\\x9b\u200fb\nc" in page
    assert not CONTROLS.search(page)


@pytest.mark.parametrize("text", ATTACKS)
def test_texts_stay_texts_in_the_terminal(text: str):
    stream = io.StringIO()
    Console(file=stream, width=100, force_terminal=False).print(sample_panel(everywhere(text)))
    shown = stream.getvalue()
    assert "\x1b" not in shown
    assert "\x00" not in shown
