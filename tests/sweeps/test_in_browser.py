"""The heat-map as people see it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from memback.sweeps.html import View, render
from memback.sweeps.point import failed
from tests.reports.browser import Page, chromium
from tests.sweeps.small import grid, rows_of

pytestmark = pytest.mark.browser

GRID = grid("batch=2,4,64", "policy=none,sqrt,selective:attention", "dtype=float32,float64", budget=180_000)


@pytest.fixture(scope="module")
def rows():
    return [*rows_of(GRID)[:-1], failed(GRID.points[-1], "<b>bold</b>")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    with chromium(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def file(rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "sweep.html"
    path.write_text(render(GRID, rows, View.of(GRID)))
    return path


def choose(page: Page, select: str, text: str) -> None:
    page.run(
        "const s = document.querySelector(arguments[0]);"
        "s.value = [...s.options].find((o) => o.textContent === arguments[1]).value;"
        "s.dispatchEvent(new Event('change'))",
        select,
        text,
    )


def numbers(page: Page) -> list[list[str]]:
    """The cells of the table below the map."""
    script = (
        "return [...document.getElementById('numbers').tBodies[0].rows]"
        ".map((row) => [...row.cells].slice(1).map((cell) => cell.textContent))"
    )
    return page.run(script)


def test_it_opens_without_a_complaint_or_a_request_and_shows_the_rows_numbers(browser: Page, file: Path, rows) -> None:
    browser.open(file)
    assert browser.complaints() == []
    assert browser.requests() == {f"{file.as_uri()}?theme=light"}
    shown = {(row.settings["batch"], row.settings["policy"]): row for row in rows if row.settings["dtype"] == "float32"}
    expected = [
        [f"{shown[batch, policy].full.peak_bytes:,}" for batch in (2, 4, 64)]
        for policy in ("none", "sqrt", "selective:attention")
    ]
    assert numbers(browser) == expected


def test_values_axes_and_the_place_on_other_axes_can_be_chosen(browser: Page, file: Path, rows) -> None:
    browser.open(file)
    choose(browser, "#value", "saved bytes of checkpoint")
    choose(browser, ".slice select", "float64")
    row = next(r for r in rows if r.settings == {"batch": 4, "policy": "sqrt", "dtype": "float64"})
    assert numbers(browser)[1][1] == f"{row.checkpoint.saved_bytes:,}"
    choose(browser, "#x", "dtype")
    assert browser.run("return document.querySelector('#numbers thead').textContent") == "policyfloat32float64"
    choose(browser, "#y", "dtype")  # the axes change places
    assert browser.run("return document.querySelector('#numbers thead').textContent") == (
        "dtypenonesqrtselective:attention"
    )


def test_a_point_without_a_value_says_why(browser: Page, file: Path) -> None:
    browser.open(file)
    choose(browser, ".slice select", "float64")
    cells = numbers(browser)
    assert cells[2][2] == "<b>bold</b>"
    choose(browser, "#value", "saved bytes of checkpoint")
    assert "finds nothing to checkpoint" in numbers(browser)[2][0]
    browser.run("document.getElementById('heat').emit('plotly_click', {points: [{pointIndex: [2, 2]}]})")
    assert browser.text("#chosen-title") == "batch=64, policy=selective:attention, dtype=float64"
    assert "<b>bold</b>" in browser.text("#chosen-facts")
    assert browser.complaints() == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_serious_stands_in_the_way_of_anyone(theme: str, width: int, browser: Page, file: Path) -> None:
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(file, theme)
        browser.show("#heat")
        browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
        browser.run(axe)
        result = browser.browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        serious = [v["id"] for v in result["violations"] if v["impact"] in ("serious", "critical")]
        assert serious == []
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
