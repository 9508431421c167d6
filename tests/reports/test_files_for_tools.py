"""Formats that other programs open: trace, speedscope, SVG, PNG, and the published schema."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from hypothesis import given, settings
from msgspec.structs import replace as change
from PIL import Image

from memback.errors import UsageError
from memback.profiling.report import Report
from memback.reports import check, png, speedscope, svg, trace
from memback.reports.picture import Area, Rectangle, draw
from memback.reports.schema import json_schema
from memback.reports.timeline import Timeline
from tests.reports import sample, strategies
from tests.reports.test_timeline import predicted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real() -> Report:
    return predicted("digits")


def test_the_counters_of_a_trace_are_the_live_bytes(real: Report) -> None:
    content = json.loads(trace.render(real))
    for process, run in enumerate(real.runs, start=1):
        counters = [e for e in content["traceEvents"] if e["ph"] == "C" and e["pid"] == process]
        assert [sum(e["args"].values()) for e in counters] == [event.live_bytes for event in run.timeline]
        assert [e["ts"] for e in counters] == list(range(len(run.timeline)))


def test_a_trace_has_a_slice_for_every_buffer_and_ops_without_gaps(real: Report) -> None:
    events = json.loads(trace.render(real))["traceEvents"]
    for process, run in enumerate(real.runs, start=1):
        mine = [e for e in events if e["pid"] == process]
        begun = {e["id"]: e["ts"] for e in mine if e["ph"] == "b"}
        ended = {e["id"]: e["ts"] for e in mine if e["ph"] == "e"}
        assert begun.keys() == ended.keys()
        assert len(begun) == len({event.buffer for event in run.timeline})
        assert all(begun[number] < ended[number] for number in begun)
        ops = [e for e in mine if e["ph"] == "X"]
        assert [e["ts"] for e in ops[1:]] == [e["ts"] + e["dur"] for e in ops[:-1]]
        assert sum(e["dur"] for e in ops) == len(run.timeline)


def test_speedscope_gets_the_saved_bytes_by_call_path(real: Report) -> None:
    content = json.loads(speedscope.render(real))
    frames = content["shared"]["frames"]
    for profile, run in zip(content["profiles"], real.runs, strict=True):
        assert sum(profile["weights"]) == run.saved_bytes == profile["endValue"]
        assert len(profile["weights"]) == len(profile["samples"])
        assert all(0 <= i < len(frames) for stack in profile["samples"] for i in stack)
    full = content["profiles"][content["activeProfileIndex"]]
    assert full["name"].startswith("full: ")
    assert [frames[i]["name"] for i in full["samples"][0]] == ["layers", "layers.0", "layers.0.1", "relu"]


def test_an_svg_is_xml_with_the_exact_sizes_and_escaped_names(real: Report) -> None:
    named = change(real, profile=change(real.profile, name='<script>"&'))
    text = svg.render(named)
    root = ElementTree.fromstring(text)
    words = " ".join(root.itertext())
    assert '<script>"&' in words
    for run in real.runs:
        assert f"{run.saved_bytes:,} B" in words
        assert f"peak {run.peak.total_bytes:,} B" in words


def test_bars_and_bands_of_a_picture_are_to_scale(real: Report) -> None:
    picture = draw(real)
    areas = [shape for shape in picture.shapes if isinstance(shape, Area)]
    most = max(run.peak.total_bytes for run in real.runs)
    top = max(Timeline(run).top for run in real.runs)
    retain_all = real.runs[0]
    highest = max(total[0] for total in Timeline(retain_all).totals)
    ys = [y for _, y in areas[0].points]
    assert max(ys) - min(ys) == pytest.approx(130 * highest / top)
    bars = [s for s in picture.shapes if isinstance(s, Rectangle) and s.height == 18 and s.colour == "#3f74e6"]
    assert bars[0].width == pytest.approx((1200 - 660) * retain_all.saved_bytes / most)


def test_a_png_is_the_same_picture_at_twice_the_size(real: Report) -> None:
    image = Image.open(io.BytesIO(png.render(real)))
    picture = draw(real)
    assert image.size == (2 * picture.width, 2 * picture.height)
    bar = next(s for s in picture.shapes if isinstance(s, Rectangle) and s.height == 18 and s.colour == "#3f74e6")
    pixel = image.convert("RGB").getpixel((round(2 * bar.x + 4), round(2 * bar.y + 4)))
    assert pixel == (0x3F, 0x74, 0xE6)


def test_without_pillow_a_png_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'pillow>=11', or write \.svg"):
        check(tmp_path / "report.png")


@pytest.mark.parametrize("render", [trace.render, speedscope.render, svg.render, png.render])
def test_a_report_without_runs_or_timelines_is_no_error(render: Any) -> None:
    report = sample.report()
    bare = tuple(change(run, timeline=()) for run in report.runs)
    assert render(change(report, runs=()))
    assert render(change(report, runs=bare))


# -- the schema


def test_the_published_schema_is_current() -> None:
    published = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    assert published == json_schema(), "python -m memback.reports.schema > docs/report.schema.json"


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    return jsonschema.Draft202012Validator(json_schema())


def test_real_and_made_up_reports_validate(validator: Any, real: Report) -> None:
    validator.validate(real.to_dict())
    validator.validate(sample.report().to_dict())


@settings(max_examples=25)
@given(report=strategies.reports)
def test_any_report_validates(report: Report) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(report.to_dict())


@pytest.mark.parametrize("wrong", [{"schema": "other/1"}, {"runs": 3}, {"created": None}, {"arguments": {}}])
def test_what_is_no_report_does_not_validate(wrong: dict[str, Any], validator: Any) -> None:
    assert not validator.is_valid({**sample.report().to_dict(), **wrong})


def test_a_report_of_before_there_were_categories_and_buffers_still_loads(real: Report) -> None:
    old = real.to_dict()
    del old["frontier"]
    for run in old["runs"]:
        del run["buffers"]
        run["timeline"] = [event[:8] for event in run["timeline"]]
    loaded = Report.from_json(json.dumps(old))
    assert [run.saved_bytes for run in loaded.runs] == [run.saved_bytes for run in real.runs]
    assert svg.render(loaded)
