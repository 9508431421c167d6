from __future__ import annotations

import csv
import io
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as change

from memback.profiling.report import Report
from memback.reports.csv import render
from memback.reports.tables import cell_text, printable, text_of_cell
from tests.reports import sample
from tests.reports.strategies import reports


def read(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(report), newline="")))


def test_the_lines_of_a_run_sum_to_its_total() -> None:
    sums: Counter[str] = Counter()
    for line in read(sample.report()):
        sums[line["mode"]] += int(line["saved_bytes"])
    assert sums == {run.mode: run.saved_bytes for run in sample.report().runs}


def test_a_line_says_what_its_layer_saves() -> None:
    line = next(line for line in read(sample.report()) if line["mode"] == "full" and line["path"] == "head")
    assert line["saved"] == "h 524288 B, output of relu (blocks.3.act), mlp.py:12"
    assert line["output_shape"] == "512x10"
    assert line["run_saved_bytes"] == "2117632"


def test_a_carriage_return_in_a_name_breaks_no_line() -> None:
    run = sample.full()
    layers = (change(run.layers[0], path="a\rb"), *run.layers[1:])
    lines = read(change(sample.report(), runs=(change(run, layers=layers),)))
    assert lines[0]["path"] == r"a\rb"
    assert len(lines) == len(layers)


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t=", "\r=", "＝", "'="])
def test_a_name_is_no_formula_of_a_spreadsheet(begin: str) -> None:
    path = f'{begin}HYPERLINK("http://x","y")'
    run = sample.full()
    layers = (change(run.layers[0], path=path), *run.layers[1:])
    lines = read(change(sample.report(), runs=(change(run, layers=layers),)))
    assert lines[0]["path"][0] in "'\\"
    assert text_of_cell(lines[0]["path"]) == printable(path)
    assert lines[1]["path"] == layers[1].path


@given(st.text(st.sampled_from("'=+-@a\t\r,\"\n")))
def test_a_cell_is_read_back_as_the_text_that_it_was(text: str) -> None:
    assert text_of_cell(cell_text(text)) == printable(text)
    assert not cell_text(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@given(reports)
def test_any_names_leave_one_line_a_layer_with_its_exact_bytes(report: Report) -> None:
    layers = [layer for run in report.runs for layer in run.layers]
    assert [int(line["saved_bytes"]) for line in read(report)] == [layer.saved_bytes for layer in layers]
