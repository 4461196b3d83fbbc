from __future__ import annotations

import copy
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tdistill.report import sample_panel, score_table, write_report
from tdistill.report.curves import smoothed, thinned
from tdistill.report.findings import summary
from tdistill.report.headline import headline
from tdistill.report.measures import DASH, MEASURES, MINUS, number, verdict
from tdistill.report.page import render
from tdistill.report.places import places
from tdistill.report.result import Estimate, Trace, result_of
from tdistill.report.svg import VARIABLES
from tdistill.report.tables import score_cell, table_columns, table_rows
from tdistill.report.tokens import reward_scale, trace_view, visible
from tdistill.report.values import value_view

HOSTILE = "<script>alert('x')</script> <img src=https://example.org/x.png> & </div>"
EXAMPLE = Path(__file__).parent / "metrics_example.json"


def set_difference(metrics: dict[str, Any], label: str, metric: str, **bounds: float) -> None:
    """Another difference of a model to the distilled one, wherever the metric is measured."""
    for row in metrics["differences"]:
        if (row["model"], row["less"]) == (label, "bellman_distill") and metric in row["metrics"]:
            row["metrics"][metric] = {"seeds": [], **bounds}


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Made-up numbers; intervals have half-width 0.05 (forward KL) and 0.5 (Rouge-L)."""
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Collects tags, ids and references, and checks that every element is closed in order."""

    VOID = frozenset({"meta", "br", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: set[str] = set(re.findall(r"url\(#([^)]+)\)", text))
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                inside = (value or "").startswith("#")
                held = (value or "").startswith("data:text/csv;charset=utf-8;base64,")
                assert inside or (tag == "a" and held), (tag, name, value)
                self.references |= {(value or "")[1:]} if inside else set()
            if name == "for":
                self.references.add(value or "")
            if name == "aria-labelledby":
                self.references |= set((value or "").split())
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def printed(renderable: Any, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


def test_page_is_self_contained_and_well_formed(metrics: dict[str, Any], tmp_path: Path) -> None:
    path = write_report(result_of(metrics), tmp_path / "new" / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert not page.tags & {"img", "link", "iframe", "object", "form"}
    assert text.count("<script") == 1
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    wanted = {"scores", "differences", "curves", "sets", "samples", "rewards", "setup"}
    assert wanted <= set(page.ids)
    assert "//" not in re.sub(r"https://example\.org", "", text), "an address other than the test's"


def test_texts_are_escaped(metrics: dict[str, Any]) -> None:
    named = json.dumps(metrics).replace('"bellman_distill"', json.dumps(HOSTILE))
    text = render(result_of(json.loads(named)))
    assert text.count("<script") == 1 and "<img" not in text
    assert text.count("&lt;script&gt;") > 10


def test_same_metrics_give_the_same_page(metrics: dict[str, Any]) -> None:
    assert render(result_of(metrics)) == render(result_of(copy.deepcopy(metrics)))


def test_figures_take_the_colours_of_the_page(metrics: dict[str, Any]) -> None:
    text = render(result_of(metrics))
    assert not [colour for colour in VARIABLES if colour in text]
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    # Intervals: forward KL, three of Rouge-L and of teacher NLL, tokens; then losses, shared, sets.
    assert len(svgs) == 8 + 2 + 2 + 2
    assert all("var(--" in s and "<title " in s and "<desc " in s for s in svgs)


def test_drawing_leaves_matplotlib_alone_and_imports_are_late() -> None:
    code = (
        "import sys, tdistill.report as r\n"
        "assert not {'matplotlib', 'jinja2', 'rich', 'torch'} & set(sys.modules)\n"
        "from tdistill.report.svg import drawing, to_svg\n"
        "import matplotlib\n"
        "keys = ['svg.fonttype', 'svg.hashsalt', 'text.parse_math', 'font.size']\n"
        "before = [matplotlib.rcParams[k] for k in keys]\n"
        "with drawing(2, 2) as (figure, axes): to_svg(figure, 'x', 't', 'd')\n"
        "assert [matplotlib.rcParams[k] for k in keys] == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("difference", "metric", "expected"),
    [
        (Estimate(-1, -1.2, -0.8), "forward_kl", "better"),
        (Estimate(1, 0.8, 1.2), "forward_kl", "worse"),
        (Estimate(1, 0.8, 1.2), "rouge_l", "better"),
        (Estimate(0.1, -0.1, 0.3), "forward_kl", "even"),
        (Estimate(0.1, 0.0, 0.2), "leak", "even"),
        (Estimate(1, 0.8, 1.2), "response_tokens", "other"),
        (Estimate(1), "rouge_l", ""),
        (None, "rouge_l", ""),
    ],
)
def test_verdict(difference: Estimate | None, metric: str, expected: str) -> None:
    assert verdict(difference, MEASURES[metric]) == expected
    turned = {"better": "worse", "worse": "better"}.get(expected, expected)
    assert verdict(None if difference is None else -difference, MEASURES[metric]) == turned


def test_words_follow_the_paired_intervals(metrics: dict[str, Any]) -> None:
    result = result_of(metrics)
    assert headline(result) == (
        "Bellman Distill lowers the forward KL of a 63.7M student to its 134.5M teacher "
        "from 2.31 to 1.12 nats a step; better than SFT in Rouge-L; "
        "Rouge-L (greedy) 30.4 of the teacher's 45.0"
    )
    text = " ".join(summary(result))
    assert "student 63.7M (47% as many)" in text
    assert (
        "Forward KL of Bellman Distill is lower than that of SFT; not told apart from that of KD."
        in text
    )
    assert (
        "Rouge-L of Bellman Distill in all three decodings is higher than that of Start and SFT; "
        "not told apart from that of KD." in text
    )
    assert "KD with its temperature tuned (T = 0.4) reaches Rouge-L 34.0 [33.5, 34.5]" in text
    assert f"26.4 [25.9, 26.9]: lower, difference {MINUS}7.6 [{MINUS}8.3, {MINUS}6.9]." in text


def test_a_baseline_wins_where_the_paired_interval_says_so_although_the_marginal_ones_overlap(
    metrics: dict[str, Any],
) -> None:
    set_difference(metrics, "kd", "forward_kl", mean=-0.02, low=-0.03, high=-0.01)
    set_difference(metrics, "kd", "rouge_l", mean=0.4, low=0.1, high=0.7)
    ours, theirs = (result_of(metrics).estimate(x, "forward_kl", None) for x in _TWO)
    assert ours and theirs and ours.low and theirs.high and ours.low < theirs.high
    text = " ".join(summary(result_of(metrics)))
    assert (
        "Forward KL of Bellman Distill is lower than that of SFT; higher than that of KD." in text
    )
    assert (
        "Rouge-L of Bellman Distill in all three decodings is higher than that of Start and SFT; "
        "lower than that of KD." in text
    )


_TWO = ("bellman_distill", "kd")


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"mean": 0.02, "low": -0.1, "high": 0.2}, "not told apart"),
        ({"mean": -0.7, "low": -0.8, "high": -0.6}, "raises"),
        ({"mean": 0.7}, "without an interval, not a ranking"),
    ],
)
def test_headline_claims_no_gain_without_one(
    metrics: dict[str, Any], bounds: dict[str, float], words: str
) -> None:
    set_difference(metrics, "start", "forward_kl", **bounds)
    text = headline(result_of(metrics))
    assert words in text and "lowers" not in text


def test_best_marks_the_best_mean_of_the_students(metrics: dict[str, Any]) -> None:
    result = result_of(metrics)
    best = {
        column.metric: [x.name for x in table_rows(result) if score_cell(result, x, column).best]
        for column in table_columns(result)
        if column.decoding in (None, "greedy")
    }
    students = ["Start", "SFT", "KD", "Bellman Distill"]
    assert best["rouge_l"] == best["forward_kl"] == ["Bellman Distill"]
    assert best["teacher_nll"] == students, "all are equal"
    assert "leak" not in best, "a column without a number is left out"


def test_tuned_temperature_is_a_row_of_its_own(metrics: dict[str, Any]) -> None:
    result = result_of(metrics)
    (row,) = [row for row in table_rows(result) if row.tuned]
    assert row.name == "KD, tuned T = 0.4"
    cells = {column: score_cell(result, row, column) for column in table_columns(result)}
    assert {column.decoding for column, cell in cells.items() if cell.spread} == {"sample"}
    assert not any(cell.best for cell in cells.values())


def test_score_table_fits_eighty_columns(metrics: dict[str, Any]) -> None:
    text = printed(score_table(result_of(metrics)))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for expected in ("134.5M", "63.7M", "30.4", "±0.5", "1.12", "±0.05", "nucl.", "tokens"):
        assert expected in text


def test_sample_panel_shows_teacher_start_and_distilled(metrics: dict[str, Any]) -> None:
    metrics["samples"][0]["responses"]["kd"] = "not shown"
    text = printed(sample_panel(result_of(metrics), n=2), 120)
    assert text.count("Bologna.") == text.count("The the") == text.count("Bellman Distill") == 2
    assert "not shown" not in text
    metrics["samples"] = []
    assert printed(sample_panel(result_of(metrics))).strip() == ""


@pytest.mark.parametrize("part", ["samples", "reward_traces", "curves", "temperatures"])
def test_an_empty_part_is_left_out(metrics: dict[str, Any], part: str) -> None:
    metrics[part] = type(metrics[part])()
    result = result_of(metrics)
    page = Page(render(result))
    assert not page.open
    section = {"reward_traces": "rewards", "temperatures": ""}.get(part, part)
    assert section not in page.ids
    printed(score_table(result))


def test_one_objective_without_references(metrics: dict[str, Any]) -> None:
    metrics["distilled"] = metrics["baseline"] = "kd"
    metrics["objectives"] = {"kd": metrics["objectives"]["kd"]}
    metrics["differences"] = []
    for score in metrics["scores"]:
        score["metrics"] = {**score["metrics"], "rouge_l": None, "reverse_kl": None}
    result = result_of(metrics)
    text = render(result)
    assert "KD" in text and "Differences to KD" in text
    assert "baseline" not in printed(score_table(result))


def test_labels_of_users_and_curves_with_gaps(metrics: dict[str, Any]) -> None:
    label = "my $x_1$ 学生 _run"
    named = json.loads(json.dumps(metrics).replace('"kd"', json.dumps(label)))
    columns = {
        "step": [0, 1, 2, 3],
        "loss": [None, None, None, 1.0],
        "odd_measure": [None] * 3 + [2],
    }
    named["curves"][label] = {"mean": columns, "seeds": [columns]}
    text = render(result_of(named))
    assert text.count(label) > 5
    assert "odd_measure" in text


def test_a_response_with_half_a_character_can_be_written(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    metrics["samples"][0]["responses"]["start"] = "cut \ud83d"
    assert r"cut \ud83d" in write_report(result_of(metrics), tmp_path / "r.html").read_text(
        encoding="utf-8"
    )


def test_smoothing_has_no_lag_and_keeps_a_constant() -> None:
    values = [float(i * i % 17) for i in range(200)]
    assert smoothed(values[::-1])[::-1] == pytest.approx(smoothed(values))
    assert smoothed([2.5] * 50) == pytest.approx([2.5] * 50)
    middle = smoothed([float(i) for i in range(200)])[100]
    assert middle == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize("length", [0, 1, 400, 401, 5003])
def test_thinning_bounds_the_points_and_keeps_the_mean(length: int) -> None:
    points = [(float(i), 2.0 * i) for i in range(length)]
    thin = thinned(points)
    assert len(thin) <= 400
    assert all(y == pytest.approx(2 * x) for x, y in thin)
    if length <= 400:
        assert thin == points


def test_tokens_are_coloured_by_sign_and_size() -> None:
    trace = Trace("p", "kd", ["a", "b", "c", "d"], [2.0, -1.0, 9.0, None], [None, 1.0, 2.0, 3.0])
    a, b, c, d = trace_view(trace, 4.0).tokens
    assert [t.sign for t in (a, b, c, d)] == ["pos", "neg", "pos", "none"]
    assert a.strength == pytest.approx(2 * b.strength) and c.strength == pytest.approx(
        2 * a.strength
    )
    assert d.strength == 0 and "no implied reward" in d.hint
    assert b.hint == f"step 1: 'b': implied reward {MINUS}1.00 nats, V 1.00 nats"


def test_places_have_a_figure_and_no_columns(metrics: dict[str, Any]) -> None:
    assert "places" not in Page(render(result_of(metrics))).ids
    measured = {"mean": 1.25, "low": 1.0, "high": 1.5}
    for more, step in enumerate((1, 2, 4)):
        for score in metrics["scores"]:
            score["metrics"][f"own_forward_kl@{step}"] = measured | {"mean": 1.25 + more}
        for row in metrics["imitation"]:
            row["metrics"][f"forward_kl@{step}"] = measured
    result = result_of(metrics)
    drawn = places(result)
    assert drawn and drawn.models == list(result.objectives)
    assert "from 1.25 to 3.25 on its own prefixes" in drawn.panels[0].svg
    text = render(result)
    assert not Page(text).open and "places" in Page(text).ids
    assert "own_forward_kl@" not in text


def test_what_is_given_up_is_drawn_step_by_step(metrics: dict[str, Any]) -> None:
    members = [
        {"token": " <was>", "teacher": 0.75, "student": 0.5, "cost": 0.125},
        {"token": "\n", "teacher": 0.25, "student": 0.5, "cost": -0.375},
    ]
    step = {"step": 2, "spared": 0.125, "members": members}
    trace = {"prompt": "p", "model": "kd", "tokens": ["a", " b", "\n"], "steps": [step]}
    (drawn,) = value_view(result_of(metrics | {"value_traces": [trace]}).value_traces[0]).steps
    assert (drawn.context, drawn.spared) == ("a b", "0.125")
    assert [(m.text, m.teacher, m.cost, m.cheap, m.taken) for m in drawn.members] == [
        (" <was>", "75.0", "0.125", False, False),
        ("⏎", "25.0", f"{MINUS}0.375", True, True),
    ]
    text = render(result_of(metrics | {"value_traces": [trace]}))
    assert not Page(text).open and "values" in Page(text).ids
    assert "&lt;was&gt;" in text and "<was>" not in text


def test_reward_scale_ignores_gaps_and_the_largest_outliers() -> None:
    rewards: list[float | None] = [0.01 * i for i in range(100)] + [500.0, None, float("nan")]
    none: list[float | None] = [None] * len(rewards)
    assert reward_scale([Trace("", "", [""] * len(rewards), rewards, none)]) == pytest.approx(0.95)
    assert reward_scale([]) == 1.0


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", (" the", 0)),
        ("\n\n", ("⏎⏎", 2)),
        ("\r\n", ("⏎", 1)),
        ("  ", ("··", 0)),
        ("\ta", ("→a", 0)),
        ("\x00", ("\\x00", 0)),
        ("", ("∅", 0)),
    ],
)
def test_invisible_tokens_are_shown(token: str, shown: tuple[str, int]) -> None:
    assert visible(token) == shown


@pytest.mark.parametrize(
    ("value", "text"), [(-0.001, "0.00"), (-1.5, f"{MINUS}1.50"), (None, DASH)]
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value, 2) == text
