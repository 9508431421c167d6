from __future__ import annotations

import re

import msgspec
from hypothesis import given, settings

from memback.profiling.report import Report
from memback.reports.markdown import render
from tests.reports import sample
from tests.reports.strategies import reports

change = msgspec.structs.replace
SEPARATOR = re.compile(r"(?<!\\)\|")


def check_tables(text: str) -> None:
    """Each row of a table has as many cells as its titles."""
    width = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(SEPARATOR.findall(line))
        width = width or cells
        assert cells == width, line


@given(reports)
@settings(max_examples=30)
def test_any_names_leave_whole_tables_with_the_exact_totals(report: Report) -> None:
    text = render(report)
    check_tables(text)
    for run in report.runs:
        assert f"| {run.saved_bytes:,} |" in text
        assert f"| {run.peak.total_bytes:,} |" in text


def test_each_run_has_its_layers_to_unfold() -> None:
    text = render(sample.report())
    assert "<summary>Layers of full: 2,117,632 B (2.02 MiB) saved</summary>" in text
    assert text.count("<details>") == text.count("</details>") == 4
    assert "| head | linear | 1 |" in text
    assert "h 524,288 B, output of relu (blocks.3.act), mlp.py:12" in text


def test_names_are_no_markup() -> None:
    run = change(sample.checkpoint(), policy="<b>")
    layer = change(run.layers[0], path="a|b_[x](y)<img>`*\n_c_")
    text = render(change(sample.report(), runs=(change(run, layers=(layer, *run.layers[1:])),)))
    check_tables(text)
    assert r"a\|b\_\[x](y)\<img\>\`\*\\n_c\_" in text
    assert "<summary>Layers of checkpoint:&lt;b&gt;" in text
