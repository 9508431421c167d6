"""HTML reports as people see them."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace as change

from memback.commands import main
from memback.profiling.report import FrontierPoint, Report
from memback.reports.timeline import Timeline
from tests.reports import test_device
from tests.reports.browser import Page, chromium
from tests.reports.test_html import nasty
from tests.reports.test_timeline import predicted

pytestmark = pytest.mark.browser

FRONTIER = (FrontierPoint(1 << 20, 5e9), FrontierPoint(1 << 21, 5e8), FrontierPoint(1 << 26, 0.0))
SAVED, PARAMETERS = 2, 4
"""Columns of the table of layers."""
BYTES = 1
"""The column of sizes in the table of what is alive."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def report() -> Report:
    return change(predicted("digits-resnet"), frontier=FRONTIER)


@pytest.fixture(scope="module")
def saved(report: Report, folder: Path) -> Path:
    path = folder / "report.html"
    report.save(path)
    return path


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Page]:
    with chromium(folder) as page:
        yield page


@pytest.fixture
def page(browser: Page, saved: Path) -> Page:
    browser.open(saved)
    return browser


def number(text: str) -> int:
    return int(text.replace(",", "").removesuffix(" B"))


def full(report: Report) -> Any:
    return next(run for run in report.runs if run.mode == "full")


def cells(page: Page, table: str, column: int, part: str = "tBodies[0]") -> list[str]:
    script = f"return [...document.getElementById('{table}').{part}.rows].map((r) => r.cells[{column}].textContent)"
    return list(page.run(script))


def choose(page: Page, mode: str) -> None:
    page.click(f"#picker .{mode}")


def test_the_frontier_is_the_reports(page: Page, report: Report) -> None:
    page.show("#frontier")
    points = sorted(report.frontier)
    forward = full(report).flops
    assert list(map(number, cells(page, "frontier-table", 0))) == [point.peak_bytes for point in points]
    assert list(map(number, cells(page, "frontier-table", 2))) == [round(point.cost) for point in points]
    assert cells(page, "frontier-table", 3) == [f"{100 * point.cost / forward:.1f} %" for point in points]
    assert cells(page, "frontier-table", 4).count("knee") == 1
    curve, *marked = page.run(
        "return document.getElementById('frontier').data.map((t) => ({x: [...t.x], y: [...t.y], text: t.text}))"
    )
    assert curve["x"] == [pytest.approx(point.peak_bytes / 2**20) for point in points]
    assert curve["y"] == [pytest.approx(100 * point.cost / forward) for point in points]
    runs = [run for run in report.runs if run.mode in ("full", "checkpoint")]
    for run, mark in zip(runs, marked, strict=True):
        assert mark["x"] == [pytest.approx(run.peak.total_bytes / 2**20)]
        assert mark["y"] == [pytest.approx(100 * run.recomputed_flops / run.flops)]
        assert f"{run.label}: peak {run.peak.total_bytes:,} B" in mark["text"][0]
    axes = "const f = document.getElementById('frontier')._fullLayout; return [f.xaxis.title.text, f.yaxis.title.text]"
    assert page.run(axes) == ["peak above the arguments, MiB", "recomputed, % of a forward pass"]


# -- it opens


def test_it_opens_without_a_complaint_or_a_request(page: Page, saved: Path) -> None:
    for plot in ("#over", "#time", "#map", "#frontier"):
        page.show(plot)
    for mode in ("retain-all", "checkpoint", "inference"):
        choose(page, mode)
    assert page.complaints() == []
    assert {url.partition("?")[0] for url in page.requests()} <= {saved.as_uri()}


def test_the_largest_profile_opens(browser: Page, folder: Path) -> None:
    path = folder / "gpt3.html"
    assert main(["profile", "gpt3-175b", "--dry", "--quiet", "-o", str(path)]) == 0
    browser.open(path)
    for plot in ("#over", "#time", "#map"):
        browser.show(plot)
    assert browser.complaints() == []
    assert "events are drawn as" in browser.text("#time-note")


def test_a_report_with_hostile_names_runs_none_of_them(browser: Page, folder: Path) -> None:
    path = folder / "nasty.html"
    nasty().save(path)
    browser.open(path)
    for plot in ("#over", "#time", "#map"):
        browser.show(plot)
    browser.click("#layers .name button")
    assert browser.complaints() == []
    assert browser.run("return document.querySelectorAll('img, script[src], a[href^=javascript]').length") == 0
    assert "<img src=x onerror=alert(2)>" in browser.text("#layers")
    assert "<img src=x onerror=alert(2)>" in browser.run("return document.querySelector('#map').textContent")


# -- the numbers are the report's


def test_the_bars_say_the_reports_bytes(page: Page, report: Report) -> None:
    sizes = page.run("return [...document.querySelectorAll('.bars .size small')].map((e) => e.textContent)")
    wanted = [n for run in report.runs for n in (run.saved_bytes, run.peak.total_bytes)]
    assert list(map(number, sizes)) == wanted


def test_the_layers_are_the_reports_in_every_mode(page: Page, report: Report) -> None:
    page.click("#fold")
    for run in report.runs:
        choose(page, run.mode)
        assert list(map(number, cells(page, "layers", SAVED))) == [layer.saved_bytes for layer in run.layers]
        assert number(cells(page, "layers", SAVED, "tFoot")[0]) == run.saved_bytes
        assert list(map(number, cells(page, "layers", PARAMETERS))) == [layer.parameter_bytes for layer in run.layers]


def test_folded_layers_keep_the_sum(page: Page, report: Report) -> None:
    assert sum(map(number, cells(page, "layers", SAVED))) == full(report).saved_bytes
    assert f"{len(full(report).layers)} of {len(full(report).layers)} layers" in page.text("#count")


def test_what_is_alive_at_the_peak_adds_up_in_every_mode(page: Page, report: Report) -> None:
    for run in report.runs:
        choose(page, run.mode)
        while page.run("return !document.getElementById('alive-more').hidden"):
            page.click("#alive-more")
        assert sum(map(number, cells(page, "alive", BYTES))) == run.peak.total_bytes
        assert number(cells(page, "alive", BYTES, "tFoot")[0]) == run.peak.total_bytes
        assert f"The peak, {run.peak.total_bytes:,} B" in page.text("#alive-title")


def test_any_moment_shows_what_is_alive_then(page: Page, report: Report) -> None:
    run = full(report)
    timeline = Timeline(run)
    for time_ in (0, 3, len(run.timeline) // 2, len(run.timeline) - 1):
        page.run(
            "const m = document.getElementById('moment'); m.value = arguments[0]; m.dispatchEvent(new Event('input'))",
            time_,
        )
        while page.run("return !document.getElementById('alive-more').hidden"):
            page.click("#alive-more")
        if timeline.peak().time != time_:  # type: ignore[union-attr]
            assert number(cells(page, "alive", BYTES, "tFoot")[0]) == run.timeline[time_].live_bytes
            assert list(map(number, cells(page, "alive", BYTES))) == [span.bytes for span in timeline.alive(time_)]


# -- pointing, zooming


def point(page: Page, mode_time: int, height: float, report: Report, kind: str = "pointermove") -> str:
    """Point at a moment of the full run's picture, at a height in bytes; what the tip says."""
    return str(
        page.run(
            """
            const [time, bytes, forward, length, kind] = arguments;
            const { xaxis, yaxis } = document.getElementById('time')._fullLayout;
            const x = (t) => (t <= forward ? t / forward : 1 + (t - forward) / (length - forward));
            const unit = { B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 }[yaxis.title.text.split(' ')[1]];
            const box = document.getElementById('time').getBoundingClientRect();
            const clientX = box.left + xaxis._offset + xaxis.c2p(x(time + 0.5));
            const clientY = box.top + yaxis._offset + yaxis.c2p(bytes / unit);
            document.querySelector('.stage').dispatchEvent(new PointerEvent(kind, { clientX, clientY, bubbles: true }));
            return document.getElementById('tip').innerText;
            """,
            mode_time,
            height,
            Timeline(full(report)).forward_end,
            len(full(report).timeline),
            kind,
        )
    )


def test_pointing_at_a_band_names_its_buffer(page: Page, report: Report) -> None:
    page.show("#time")
    timeline = Timeline(full(report))
    for time_ in (timeline.forward_end // 2, timeline.forward_end - 1, timeline.forward_end + 40):
        stack = [s for s in timeline.spans if s.category == "saved" and s.start <= time_ < s.end]
        below = 0
        for span in stack:
            if span.bytes > timeline.top / 100:
                life = timeline.lives[span.buffer]
                tip = point(page, time_, below + span.bytes / 2, report)
                assert tip.startswith(life.origin)
                for words in (
                    f"saved, {span.bytes:,} B",
                    f"layer {life.path or '(top)'}",
                    f"line {life.source}",
                    f"born at {life.birth:,}: forward of {life.op}",
                    f"dies at {life.death:,}: ",
                ):
                    assert words in tip
            below += span.bytes
    assert page.run("return document.querySelectorAll('.mark path').length") == 1


def test_dragging_zooms_into_a_stretch_and_back(page: Page) -> None:
    page.show("#time")
    page.run("Plotly.relayout('time', {'xaxis.range[0]': 0.5, 'xaxis.range[1]': 0.75})")
    page.wait("return document.getElementById('time')._fullLayout.xaxis.range[1] === 0.75")
    drawn = page.run("return document.getElementById('time').data[0].x")
    assert 0.4 < drawn[0] <= 0.5
    assert drawn[-1] == pytest.approx(0.75, abs=0.02)
    page.click("#unzoom")
    assert page.run("return document.getElementById('time')._fullLayout.xaxis.range") == [0, 2]


def test_a_drag_of_the_mouse_zooms(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.show("#time")
    plot = page.browser.find_element("css selector", "#time .nsewdrag")
    ActionChains(page.browser).move_to_element_with_offset(plot, -200, 0).click_and_hold().move_by_offset(
        120, 3
    ).release().perform()
    width = "const r = document.getElementById('time')._fullLayout.xaxis.range; return r[1] - r[0]"
    page.wait(f"{width.replace('return', 'return 1.5 >')}")
    assert 0 < page.run(width) < 0.5


def test_the_map_zooms_to_a_module_and_its_parts_add_up(page: Page, report: Report) -> None:
    page.show("#map")
    options = page.run("return [...document.getElementById('zoom').options].map((o) => [o.value, o.textContent])")
    value, name = options[len(options) // 2]
    page.run(
        "const z = document.getElementById('zoom'); z.value = arguments[0]; z.dispatchEvent(new Event('change'))", value
    )
    trace = "document.getElementById('map').data[0]"
    assert page.run(f"return {trace}.level") == f"n{value}"
    path = name.split(":")[0]
    inside = [layer for layer in full(report).layers if layer.path == path or layer.path.startswith(f"{path}.")]
    index = page.run(f"return {trace}.ids.indexOf('n{value}')")
    assert page.run(f"return {trace}.values[{index}]") == sum(layer.saved_bytes for layer in inside)
    assert page.run(f"return {trace}.values[{trace}.ids.indexOf('n0')]") == full(report).saved_bytes


def test_choosing_a_tile_zooms_into_it(page: Page) -> None:
    from selenium.webdriver import ActionChains

    page.show("#map")
    page.wait("return document.querySelectorAll('#map .slice').length > 3")
    module = page.browser.find_elements("css selector", "#map .slice .surface")[1]
    left, top = 10 - module.size["width"] // 2, 8 - module.size["height"] // 2
    ActionChains(page.browser).move_to_element_with_offset(module, left, top).click().perform()
    page.wait("return document.getElementById('map').data[0].level !== 'n0'")


# -- the table of layers


def test_sorting_goes_down_up_and_back(page: Page) -> None:
    def column() -> list[int]:
        return list(map(number, cells(page, "layers", SAVED)))

    before = column()
    button = "#layers thead th:nth-child(3) button"
    page.click(button)
    assert column() == sorted(before, reverse=True)
    assert (
        page.run("return document.querySelector('#layers thead th:nth-child(3)').getAttribute('aria-sort')")
        == "descending"
    )
    page.click(button)
    assert column() == sorted(before)
    page.click(button)
    assert column() == before


def test_a_filter_leaves_what_it_names(page: Page, report: Report) -> None:
    page.click("#fold")
    page.browser.find_element("css selector", "#filter").send_keys("relu")
    wanted = [
        layer for layer in full(report).layers if "relu" in layer.op or any("relu" in v.origin for v in layer.saved)
    ]
    assert list(map(number, cells(page, "layers", SAVED))) == [layer.saved_bytes for layer in wanted]
    assert page.text("#count").startswith(f"{len(wanted)} rows")
    assert number(cells(page, "layers", SAVED, "tFoot")[0]) == sum(layer.saved_bytes for layer in wanted)


def test_the_download_is_the_table(page: Page, folder: Path, report: Report) -> None:
    page.click("#fold")
    page.click("#csv")
    end = time.monotonic() + 30
    while not (found := [path for path in folder.glob("*-full-layers.csv") if path.stat().st_size]):
        assert time.monotonic() < end
        time.sleep(0.05)
    lines = list(csv.DictReader(found[0].read_text(encoding="utf-8").splitlines()))
    assert [int(line["saved_bytes"]) for line in lines] == [layer.saved_bytes for layer in full(report).layers]
    assert [line["layer"] or "(top)" for line in lines] == [layer.path or "(top)" for layer in full(report).layers]


def test_a_layer_opens_to_what_it_saves(page: Page, report: Report) -> None:
    page.click("#fold")
    page.click("#layers .name button")
    first = next(layer for layer in full(report).layers if layer.saved)
    text = page.text("#layers .detail")
    for value in first.saved:
        assert f"{value.bytes:,} B: {value.origin}, {value.source}" in text
    assert page.run("return document.querySelector('#layers .name button').getAttribute('aria-expanded')") == "true"


# -- for everyone


def test_modes_and_moments_can_be_chosen_with_the_keyboard(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    chosen = page.browser.find_element("css selector", "#picker [aria-checked=true]")
    chosen.send_keys(Keys.ARROW_RIGHT)
    assert page.text("#picker [aria-checked=true]").startswith("checkpoint")
    before = page.text("#alive-title")
    page.browser.find_element("css selector", "#moment").send_keys(Keys.ARROW_LEFT)
    assert page.text("#alive-title") != before


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_serious_stands_in_the_way_of_anyone(theme: str, width: int, browser: Page, saved: Path) -> None:
    check_for_everyone(browser, saved, theme, width, ("#over", "#time", "#map", "#frontier"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_step_on_a_device_is_shown_to_anyone(theme: str, width: int, browser: Page, folder: Path) -> None:
    path = folder / f"device-{theme}-{width}.html"
    test_device.report(1024, "CUDA out of memory.").save(path)
    check_for_everyone(browser, path, theme, width, ("#over",))
    assert browser.text("#device-title") == "A training step on the device"
    assert browser.run("return document.querySelectorAll('.segment').length") == 10


def check_for_everyone(browser: Page, path: Path, theme: str, width: int, plots: tuple[str, ...]) -> None:
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(path, theme)
        assert browser.run("return document.documentElement.dataset.theme") == theme
        for plot in plots:
            browser.show(plot)
        browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
        browser.run(axe)
        result = browser.browser.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        serious = [v for v in result["violations"] if v["impact"] in ("serious", "critical")]
        assert [(v["id"], [n["html"] for n in v["nodes"][:3]]) for v in serious] == []
        assert len(result["passes"]) > 20
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_theme_can_be_switched(page: Page) -> None:
    ink = "return getComputedStyle(document.body).color"
    before = page.run(ink)
    page.click("#theme")
    assert page.run(ink) != before
    assert re.search("light", page.run("return document.getElementById('theme').getAttribute('aria-label')"))


def test_without_the_plotting_library_all_but_the_pictures_is_there(
    browser: Page, saved: Path, folder: Path, report: Report
) -> None:
    broken = folder / "broken.html"
    page = saved.read_text(encoding="utf-8")
    broken.write_text(re.sub(r'(id="packed-plotly">)[^<]*', r"\1AAAA", page), encoding="utf-8")
    browser.open(broken)
    assert number(cells(browser, "layers", SAVED, "tFoot")[0]) == full(report).saved_bytes
    assert f"The peak, {full(report).peak.total_bytes:,} B" in browser.text("#alive-title")
    assert "can't show the pictures" in browser.text("#main > .bad")


def test_without_a_script_the_comparison_is_there(browser: Page, saved: Path) -> None:
    browser.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.browser.get(saved.as_uri())
        body = browser.browser.find_element("css selector", "main").text
        assert "retain-all saves" in body
        assert "switched off" in body
    finally:
        browser.browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
