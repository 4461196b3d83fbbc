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

from tdistill.errors import DataError
from tdistill.report import sample_panel, score_table, write_report
from tdistill.report.figures import smoothed, thinned
from tdistill.report.findings import headline, summary, verdict
from tdistill.report.html import render
from tdistill.report.measures import DASH, MINUS, number
from tdistill.report.records import Estimate, Trace, read_record
from tdistill.report.svg import VARIABLES
from tdistill.report.tables import score_grid
from tdistill.report.tokens import reward_scale, trace_view, visible

HOSTILE = "<script>alert('x')</script> <img src=https://example.org/x.png> & </div>"
EXAMPLE = Path(__file__).parent / "metrics_example.json"


def estimate(mean: float | None, half: float) -> dict[str, float] | None:
    return None if mean is None else {"mean": mean, "low": mean - half, "high": mean + half}


def score(model: str, rouge: float, decoding: str, temperature: float) -> dict[str, Any]:
    metrics = {"rouge_l": estimate(rouge, 0.5), "teacher_nll": estimate(2.0, 0.1)}
    metrics |= {"reverse_kl": None, "response_tokens": estimate(40.0, 2.0)}
    return {
        "model": model,
        "decoding": decoding,
        "temperature": temperature,
        "seeds": 3,
        "prompts": 60,
        "metrics": metrics,
    }


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Made-up numbers; intervals have half-width 0.05 (forward KL) and 0.5 (Rouge-L)."""
    return json.loads(EXAMPLE.read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Collects tags, ids and references, and checks that every element is closed in order."""

    VOID = frozenset({"meta", "br"})

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
                assert (value or "").startswith("#"), (tag, name, value)
                self.references.add((value or "")[1:])
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
    path = write_report(metrics, tmp_path / "new" / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert not page.tags & {"script", "img", "link", "iframe", "object"}
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert {"scores", "curves", "sets", "samples", "rewards", "setup"} <= set(page.ids)
    assert "//" not in re.sub(r"https://example\.org", "", text), "an address other than the test's"


def test_texts_are_escaped(metrics: dict[str, Any]) -> None:
    metrics["distilled"] = metrics["imitation"][-1]["model"] = HOSTILE
    metrics["curves"][HOSTILE] = metrics["curves"].pop("bellman_distill")
    text = render(read_record(metrics))
    assert "<script" not in text and "<img" not in text
    assert text.count("&lt;script&gt;") > 10


def test_same_metrics_give_the_same_page(metrics: dict[str, Any]) -> None:
    assert render(read_record(metrics)) == render(read_record(copy.deepcopy(metrics)))


def test_figures_take_the_colours_of_the_page(metrics: dict[str, Any]) -> None:
    text = render(read_record(metrics))
    assert not [colour for colour in VARIABLES if colour in text]
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.S)
    # Intervals: forward KL, three of Rouge-L, teacher NLL. Losses 2, shared 2, sets 2.
    assert len(svgs) == 5 + 2 + 2 + 2
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
    ("ours", "theirs", "better", "expected"),
    [
        (Estimate(1, 0.9, 1.1), Estimate(2, 1.9, 2.1), -1, "better"),
        (Estimate(1, 0.9, 1.1), Estimate(2, 1.9, 2.1), 1, "worse"),
        (Estimate(2, 1.9, 2.1), Estimate(1, 0.9, 1.1), 1, "better"),
        (Estimate(1, 0.9, 1.1), Estimate(1.15, 1.1, 1.2), -1, "overlap"),
        (Estimate(1), Estimate(2, 1.9, 2.1), -1, "unknown"),
        (Estimate(float("nan"), 0.9, 1.1), Estimate(2, 1.9, 2.1), -1, "unknown"),
        (None, Estimate(2, 1.9, 2.1), -1, "unknown"),
    ],
)
def test_verdict(ours: Estimate, theirs: Estimate, better: int, expected: str) -> None:
    assert verdict(ours, theirs, better) == expected


def test_words_follow_the_intervals(metrics: dict[str, Any]) -> None:
    record = read_record(metrics)
    assert headline(record) == (
        "Bellman Distill lowers the forward KL of a 63.7M student to its 134.5M teacher "
        "from 2.31 to 1.12 nats a step"
    )
    text = " ".join(summary(record))
    assert "student 63.7M (47% as many)" in text
    assert (
        "Forward KL of Bellman Distill is lower than that of SFT; "
        "not separated from that of KD (intervals overlap)." in text
    )
    assert (
        "Rouge-L of Bellman Distill in all three decodings is higher than that of Start and SFT; "
        "not separated from that of KD (intervals overlap)." in text
    )
    assert "KD with its temperature tuned (T = 0.4) reaches Rouge-L 34.0 [33.5, 34.5]" in text
    assert "26.4 [25.9, 26.9]: lower, intervals disjoint." in text


@pytest.mark.parametrize(("mean", "words"), [(2.29, "intervals overlap"), (3.0, "raises")])
def test_headline_claims_no_gain_without_one(
    metrics: dict[str, Any], mean: float, words: str
) -> None:
    metrics["imitation"][-1]["metrics"]["forward_kl"] = estimate(mean, 0.05)
    text = headline(read_record(metrics))
    assert words in text and "lowers" not in text


def test_best_marks_all_students_that_overlap_with_the_best(metrics: dict[str, Any]) -> None:
    grid = score_grid(read_record(metrics))
    best = {
        column.metric: [r.name for r in grid.rows if r.cells[i].best]
        for i, column in enumerate(grid.columns)
        if column.decoding in (None, "greedy")
    }
    students = ["Start", "SFT", "KD", "Bellman Distill"]
    assert best["rouge_l"] == best["forward_kl"] == ["KD", "Bellman Distill"]
    assert best["teacher_nll"] == students
    assert "leak" not in best, "a column without a number is left out"


def test_tuned_temperature_is_a_row_of_its_own(metrics: dict[str, Any]) -> None:
    grid = score_grid(read_record(metrics))
    (row,) = [r for r in grid.rows if "tuned" in r.name]
    assert row.name == "KD, tuned T = 0.4"
    shown = {c.decoding for c, cell in zip(grid.columns, row.cells, strict=True) if cell.spread}
    assert shown == {"sample"}
    assert not any(cell.best for cell in row.cells)


def test_score_table_fits_eighty_columns(metrics: dict[str, Any]) -> None:
    text = printed(score_table(metrics))
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for expected in ("134.5M", "63.7M", "30.4", "±0.5", "1.12", "±0.05", "nucleus", "tokens"):
        assert expected in text


def test_sample_panel_shows_teacher_start_and_distilled(metrics: dict[str, Any]) -> None:
    metrics["samples"][0]["responses"]["kd"] = "not shown"
    text = printed(sample_panel(metrics, n=2), 120)
    assert text.count("Bologna.") == text.count("The the") == text.count("Bellman Distill") == 2
    assert "not shown" not in text
    assert printed(sample_panel({"format": 1})).strip() == ""


@pytest.mark.parametrize(
    "part",
    [
        *("created", "versions", "recipe", "distilled", "counts", "parameters", "seconds"),
        *("scores", "imitation", "cache", "curves", "samples", "reward_traces"),
    ],
)
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_missing_part_is_left_out(metrics: dict[str, Any], part: str, how: str) -> None:
    if how == "absent":
        del metrics[part]
    else:
        metrics[part] = None
    assert not Page(render(read_record(metrics))).open
    printed(score_table(metrics))
    printed(sample_panel(metrics))


def test_nothing_but_a_format_is_still_a_page() -> None:
    assert "<h1>Distillation report</h1>" in render(read_record({"format": 1}))


def test_one_model_and_null_metrics(metrics: dict[str, Any]) -> None:
    only = score("kd", 30.0, "greedy", 0.0)
    only["metrics"] = dict.fromkeys(only["metrics"])
    metrics |= {"scores": [only], "imitation": [], "curves": {}, "cache": {}}
    text = render(read_record(metrics))
    assert "KD" in text and 'class="verdicts"' not in text


def test_labels_of_users_and_numbers_that_are_not_finite(metrics: dict[str, Any]) -> None:
    label = "my $x_1$ 学生 _run"
    metrics["curves"][label] = [{"step": i, "loss": float("nan")} for i in range(3)]
    metrics["curves"][label].append({"step": 3, "loss": 1.0, "odd_measure": 2, "note": "a"})
    metrics["scores"].append(score(label, float("inf"), "greedy", 0.0))
    metrics["imitation"].append({"model": label, "metrics": {"forward_kl": estimate(1.9, 0.1)}})
    text = render(read_record(metrics))
    assert text.count(label) > 5
    assert "odd_measure" in text and "∞" in text


def test_a_response_with_half_a_character_can_be_written(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    metrics["samples"][0]["responses"]["start"] = "cut \ud83d"
    assert "cut ?" in write_report(metrics, tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("format", 2, "format"),
        ("scores", {}, "scores"),
        ("scores.1", [], r"scores\[1\]"),
        ("scores.0.model", 3, r"scores\[0\]\.model"),
        ("scores.1.decoding", "greedy", r"scores\[1\]"),
        ("scores.0.metrics.rouge_l", 30.0, r"scores\[0\]\.metrics\.rouge_l"),
        ("scores.0.metrics.rouge_l.mean", "30", r"rouge_l\.mean"),
        ("scores.0.metrics.rouge_l.low", 99.0, "low <= high"),
        ("parameters.student", "64M", r"parameters\.student"),
        ("cache.set_size_histogram.counts", [1], "one more edge than counts"),
        ("cache.set_size_histogram.edges", [1, 2, 2, 5, 9], "ascending"),
        ("cache.bounds.0.kappa", "large", r"bounds\[0\]\.kappa"),
        ("curves.sft.0.step", None, r"curves\.sft\[0\]\.step"),
        ("samples.0.responses.kd", None, r"samples\[0\]\.responses\.kd"),
        ("reward_traces.0.tokens", ["a"], r"reward_traces\[0\]"),
        ("reward_traces.0.value", [1, "b", 2, 3], r"value\[1\]"),
    ],
)
def test_a_malformed_part_is_named(
    metrics: dict[str, Any], path: str, value: object, where: str
) -> None:
    *parents, last = path.split(".")
    part: Any = metrics
    for key in parents:
        part = part[int(key) if isinstance(part, list) else key]
    part[int(last) if isinstance(part, list) else last] = value
    with pytest.raises(DataError, match=rf"expected .*{where}.*found"):
        read_record(metrics)


def test_something_else_than_an_object_is_refused() -> None:
    with pytest.raises(DataError, match="an object at the whole file, found"):
        read_record([])  # pyright: ignore[reportArgumentType]


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
