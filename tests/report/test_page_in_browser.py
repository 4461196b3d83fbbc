"""The page opened and clicked through in a real browser, without a network."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from made_up import made_up
from tdistill.report import write_report
from tdistill.report.result import Result, result_of

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="needs `pip install playwright`")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RUN = "<img src=x onerror=\"document.title='acted'\"><script>document.title='acted'</script>"


@pytest.fixture(scope="module")
def result() -> Result:
    plain = made_up({"cloning": 5, "temporal-difference": 3}, seeds=1, steps=20)
    labels = ["teacher", "start", *plain["objectives"]]
    plain["samples"] = [
        {"prompt": f"About {what} {RUN}", "responses": {x: f"{x} on {what}" for x in labels}}
        for what in ("bread", "rain", "stones", "music", "rivers")
    ]
    return result_of(plain)


@pytest.fixture(scope="module")
def address(result: Result, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(result, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs chromium, as of `apt-get install chromium`")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, of which nothing may be said on the console and nothing asked elsewhere."""
    said: list[str] = []
    opened = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asked: said.append(asked.url) if asked.url != address else None)
    opened.goto(address)
    yield opened
    assert opened.title() != "acted"
    opened.close()
    assert [text for text in said if not text.startswith("data:text/csv")] == []


def names(page: Any) -> list[str]:
    table = page.locator("#scores .sortable").first
    return table.locator("tbody tr[data-find]:visible th").all_inner_texts()


def test_a_click_on_a_heading_sorts_best_first_and_the_third_restores(page: Any, result: Result):
    head = page.locator("#scores thead button", has_text="Forward KL").first
    before = names(page)
    head.click()
    means = {x: e.mean for x in result.models if (e := result.estimate(x, "forward_kl", None))}
    shown = [x.lower() if x in ("Teacher", "Start") else x for x in names(page)]
    measured = [x for x in shown if x in means]
    assert measured == sorted(means, key=lambda x: means[x]) == shown[: len(measured)]
    head.click()
    shown = [x.lower() if x in ("Teacher", "Start") else x for x in names(page)]
    assert [x for x in shown if x in means] == measured[::-1]
    head.click()
    assert names(page) == before


def test_the_table_is_filtered_by_name_and_family(page: Any, result: Result):
    box = page.locator("#scores [data-filter]").first
    box.fill("temporal")
    assert names(page) == [
        x for x, about in result.objectives.items() if about.family == "temporal-difference"
    ]
    box.fill("no such model")
    assert names(page) == []
    box.fill("")
    assert set(result.objectives) <= set(names(page))


def test_responses_are_searched(page: Any):
    samples = page.locator("#samples details.sample:visible")
    assert samples.count() == 5
    page.locator("[data-search]").fill("RIVERS fkl_cl0")
    assert samples.count() == 1
    assert "About rivers" in samples.first.inner_text()
    assert samples.first.get_attribute("open") is not None
    assert page.locator("#samples output").inner_text() == "1 of 5 prompts"


@pytest.mark.parametrize("script", [True, False])
def test_models_are_shown_and_hidden_together_with_and_without_script(
    browser: Any, address: str, result: Result, script: bool
):
    context = browser.new_context(java_script_enabled=script)
    page = context.new_page()
    page.goto(address)
    page.locator("#models > summary").click()
    key = f"m{len(result.models) - 2}"
    box, line = page.locator(f"#show-{key}"), page.locator(f"#curves svg .{key}").first
    answer = page.locator(f"#samples .{key}").first
    shown = box.is_checked()
    for _ in range(2):
        assert line.is_visible() == answer.is_visible() == box.is_checked()
        box.click()
    assert box.is_checked() == shown
    assert page.locator("[data-filter]").first.is_visible() == script
    assert page.locator("#scores tbody tr").first.is_visible()
    context.close()


def test_numbers_are_saved_as_csv(page: Any, result: Result, tmp_path: Path):
    with page.expect_download() as started:
        page.locator("a[download='scores.csv']").click()
    started.value.save_as(tmp_path / "scores.csv")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    found = next(r for r in rows if (r["model"], r["metric"]) == ("start", "forward_kl"))
    expected = result.estimate("start", "forward_kl", None)
    assert expected and float(found["mean"]) == expected.mean


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(browser: Any, address: str, width: int, scheme: Any):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
