from __future__ import annotations

import base64
import gzip
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace as change

from memback.commands import main
from memback.profiling.report import FrontierPoint, Report
from memback.reports.html import fragment, payload, render
from memback.reports.text import plain
from tests.reports import sample

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\x1b[31m"


def nasty() -> Report:
    report = sample.report()
    run = report.runs[1]
    value = change(run.layers[1].saved[0], name=NASTY, origin=NASTY, source=NASTY)
    layers = (run.layers[0], change(run.layers[1], path=NASTY, op=NASTY, saved=(value,)), *run.layers[2:])
    peak = change(run.peak, path=NASTY, op=NASTY)
    profile = change(report.profile, name=NASTY, model={"name": NASTY})
    return change(report, profile=profile, runs=(report.runs[0], change(run, layers=layers, peak=peak)))


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(text: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


def data(page: str) -> Any:
    packed = re.search(r'id="packed-data">([^<]*)<', page)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def test_the_page_holds_the_numbers_of_every_mode_without_a_script() -> None:
    report = sample.report()
    page = render(report)
    for run in report.runs:
        for size in (run.saved_bytes, run.peak.total_bytes, run.measured_peak_bytes):
            assert f"{size:,}" in page
    assert "The gradients of retain-all, full, checkpoint:sqrt are bit-identical." in page


def test_gradients_that_differ_are_said_in_words() -> None:
    report = sample.report()
    runs = (report.runs[0], change(report.runs[1], gradient_sha256="1" * 64))
    assert '<li class="bad">The gradients of retain-all, full are NOT bit-identical.' in render(
        change(report, runs=runs)
    )


def test_names_are_no_markup() -> None:
    for page in (render(nasty()), fragment(nasty())):
        assert "alert(1)</script>" not in page
        assert "\x1b" not in page
        assert [tag for tag, _ in tags(page) if tag == "img"] == []
    assert data(render(nasty()))["name"] == NASTY.replace("\x1b", "\\x1b")


def test_the_page_refers_to_nothing_outside() -> None:
    page = render(sample.report())
    for tag, attributes in tags(page):
        for name in ("src", "href", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:,")), (tag, attributes)
    policy = next(a["content"] for t, a in tags(page) if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_what_is_drawn_adds_up_to_the_report() -> None:
    report = sample.report()
    for drawn, run in zip(payload(report)["runs"], report.runs, strict=True):
        assert sum(layer[5] for layer in drawn["layers"]) == run.saved_bytes == drawn["saved_bytes"]
        assert sorted(i for _, rows in drawn["folds"] for i in rows) == list(range(len(run.layers)))
        assert drawn["tree"]["bytes"][0] == run.saved_bytes
        if drawn["peak"]:
            assert sum(drawn["peak"]["parts"].values()) == run.peak.total_bytes


def test_the_same_report_gives_the_same_page() -> None:
    assert render(sample.report()) == render(sample.report())


def test_the_frontier_of_plans_travels_when_there_is_one() -> None:
    report = change(sample.report(), frontier=(FrontierPoint(100, 50.0), FrontierPoint(200, 0.0)))
    assert payload(report)["frontier"] == [[100, 50.0], [200, 0.0]]
    assert payload(sample.report())["frontier"] == []


def test_a_frontier_from_anywhere_can_be_shown() -> None:
    for frontier in ((FrontierPoint(0, 0.0),), (FrontierPoint(200, 0.0), FrontierPoint(100, 50.0))):
        report = change(sample.report(), frontier=frontier)
        assert payload(report)["knee"] in range(len(frontier))
        assert "Memory against computation" in plain(report)


def test_a_report_without_runs_is_a_page() -> None:
    assert "What every number means" in render(change(sample.report(), runs=()))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("large") / "gpt3.html"
    assert main(["profile", "gpt3-175b", "--dry", "--quiet", "-o", str(path)]) == 0
    return path.read_text(encoding="utf-8")


def test_the_largest_profile_fits_into_a_mail(large: str) -> None:
    assert len(large.encode()) < 8_000_000
    full = next(run for run in data(large)["runs"] if run["mode"] == "full")
    assert sum(layer[5] for layer in full["layers"]) == full["saved_bytes"]
    assert len(full["layers"]) > 1000


def test_within_a_notebook_nothing_is_shown_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[object] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *what: shown.append(what))
    assert "retain-all" in sample.report()._repr_mimebundle_()["text/plain"]
    assert shown == []
    assert capsys.readouterr().out == ""


def test_a_notebook_shows_bars_and_a_terminal_tables() -> None:
    bundle = sample.report()._repr_mimebundle_()
    assert "retain-all" in bundle["text/plain"]
    assert "4,214,784" in bundle["text/plain"]
    assert bundle["text/html"] == sample.report()._repr_html_()
    assert "4,214,784" in bundle["text/html"]
    assert "<script" not in bundle["text/html"]
