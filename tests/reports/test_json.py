from __future__ import annotations

import json

from hypothesis import given

from memback.profiling.report import Report
from memback.reports.json import render
from tests.reports import sample
from tests.reports.strategies import reports


@given(reports)
def test_what_is_written_is_read_back_equal(report: Report) -> None:
    assert Report.from_json(render(report)) == report


def test_keys_keep_the_order_of_the_schema() -> None:
    keys = list(json.loads(render(sample.report())))
    assert keys[:8] == ["schema", "memback", "created", "machine", "profile", "arguments", "runs", "frontier"]
    assert keys[8:] == ["distributed", "not_run", "device"]


def test_an_event_takes_one_line() -> None:
    lines = [line.strip() for line in render(sample.report()).decode().splitlines()]
    assert '[0, "new", 0, 524288, 524288, "blocks.0.fc", "linear", "forward", null],' in lines
    assert '"output_shape": [512, 256],' in lines
