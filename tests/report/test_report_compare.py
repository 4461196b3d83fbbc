"""The tables and the page of a comparison, on made-up numbers of many objectives."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_report import Page

from comparing import made_up
from tdistill.errors import DataError
from tdistill.report.compare import render_comparison, write_comparison
from tdistill.report.compare_figures import LINES_A_PANEL, curve_groups, dot_plots
from tdistill.report.compare_tables import Compared, comparison_table, markdown

SMALL = {"cloning": 3, "temporal-difference": 2}


@pytest.fixture(scope="module")
def small() -> Any:
    return made_up(SMALL, steps=20)


def changed(plain: Any, model: str, metric: str, **bounds: float) -> Any:
    """The same with another difference to the baseline, on teacher responses."""
    differences = [
        d | bounds if (d["model"], d["metric"], d["decoding"]) == (model, metric, None) else d
        for d in plain["differences"]
    ]
    return plain | {"differences": differences}


def test_the_page_is_self_contained_and_well_formed(tmp_path: Path):
    plain = made_up({"cloning": 7, "temporal-difference": 2}, steps=20)
    write_comparison(plain, tmp_path / "c.md", tmp_path / "c.html")
    text = (tmp_path / "c.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert not page.tags & {"script", "img", "link", "iframe", "object"}
    assert len(page.ids) == len(set(page.ids))
    assert page.references <= set(page.ids)
    assert {"scores", "differences", "curves", "setup"} <= set(page.ids)
    assert "//" not in text
    for label in plain["objectives"]:
        assert text.count(f'<th scope="row">{label}</th>') == 2 - (label == plain["baseline"])


def test_every_objective_is_in_one_group_of_few_lines():
    compared = Compared(made_up(steps=12))
    groups = curve_groups(compared)
    assert [g.title for g in groups[:3]] == [
        "cloning, 1 of 2",
        "cloning, 2 of 2",
        "temporal-difference, 1 of 3",
    ]
    assert all(1 <= len(g.legend) <= LINES_A_PANEL for g in groups)
    assert all(len({colour for _, colour in g.legend}) == len(g.legend) for g in groups)
    assert [name for g in groups for name, _ in g.legend] == list(compared.plain["objectives"])
    assert {len(g.panels) for g in groups} == {3}


def test_an_outlier_does_not_squeeze_the_others():
    """The last objective is far off: its arrow is at the end, and the others' dots are apart."""
    plain = made_up(SMALL, steps=5)
    drawn = next(d for d in dot_plots(Compared(plain)) if d.title == "Forward KL")
    assert re.search(r"rkl_te1 3\.\d", drawn.svg)
    ticks = [float(x) for x in re.findall(r">([\d.]+)</text>", drawn.svg.split("ytick_1")[0])]
    assert max(ticks) < 2


def test_the_side_of_a_difference_depends_on_the_measure(small: Any):
    label = list(small["objectives"])[1]

    def verdict(metric: str, low: float, high: float) -> str:
        bounds = {"mean": (low + high) / 2, "low": low, "high": high}
        compared = Compared(changed(small, label, metric, **bounds))
        line = next(x for x in compared.lines if x.label == label)
        index = [c.metric for c in compared.columns].index(metric)
        return compared.difference_cells(line)[index].verdict

    assert verdict("forward_kl", -0.2, -0.1) == "better"
    assert verdict("forward_kl", 0.1, 0.2) == "worse"
    assert verdict("forward_kl", -0.1, 0.2) == ""
    assert verdict("leak", 0.0, 0.2) == ""


def test_markdown_has_a_row_a_model_and_as_many_cells_as_heads(small: Any):
    text = markdown(Compared(changed(small, "rkl_cl1", "leak", mean=0.25, low=0.125, high=0.375)))
    tables = [part.split("\n") for part in re.findall(r"(?:^\|.*\n)+", text, re.M)]
    first, second = ([line.count(" | ") for line in t if line] for t in tables)
    assert len(set(first)) == len(set(second)) == 1
    # teacher, start, tuned start, 5 objectives; the baseline has no difference to itself.
    assert (len(first), len(second)) == (2 + 3 + 5, 2 + 3 + 4)
    assert "| rkl_cl1 | " in text
    assert "**+0.250 [0.125, 0.375]**" in text
    assert "5 objectives, 3 training seeds, 60 test prompts" in text


def test_the_best_mean_of_the_objectives_is_bold(small: Any):
    compared = Compared(small)
    column = compared.columns.index(next(c for c in compared.columns if c.title == "Forward KL"))
    bold = [x.label for x in compared.lines if compared.score_cells(x)[column].best]
    means = {
        s["model"]: s["mean"]
        for s in small["scores"]
        if s["metric"] == "forward_kl" and s["model"] in small["objectives"]
    }
    assert bold == [min(means, key=lambda x: means[x])]


def test_the_terminal_table_fits_80_characters(small: Any):
    stream = io.StringIO()
    Console(file=stream, width=80).print(comparison_table(small))
    text = stream.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(label[:5] in text for label in small["objectives"])
    assert f"{small['scores'][0]['mean']:.2f}" in text


def test_failures_are_named_and_texts_escaped(small: Any):
    plain = small | {"failed": {"bad, seed 1": "RuntimeError: <script>inf</script>"}}
    page = render_comparison(Compared(plain))
    assert "Left out: bad, seed 1 failed (RuntimeError: &lt;script&gt;" in page
    assert "Failed: bad, seed 1" in markdown(Compared(plain))


def test_another_format_is_refused():
    with pytest.raises(DataError, match=r"compare.json: expected format 1, found 2"):
        Compared({"format": 2})
