from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memback.profiling.report import Report, Run
from memback.reports.tables import Table, composition, layers
from tests.reports.strategies import reports, runs


def column(table: Table, title: str) -> list[int]:
    i = [column.title for column in table.columns].index(title)
    return [int(row.cells[i].text.replace(",", "")) for row in (*table.rows, table.total) if row is not None]


@given(runs(), st.booleans())
def test_the_rows_of_layers_sum_to_the_runs_total(run: Run, folded: bool) -> None:
    *rows, total = column(layers(run, folded), "saved bytes")
    assert sum(rows) == total == run.saved_bytes


@given(runs(), st.booleans())
def test_every_saved_value_is_listed(run: Run, folded: bool) -> None:
    details = [detail for row in layers(run, folded).rows for detail in row.details]
    sizes = {f"{value.bytes:,}" for layer in run.layers for value in layer.saved}
    assert {detail.bytes.split()[0] for detail in details} == sizes


@given(reports)
def test_the_parts_of_training_memory_sum_to_its_total(report: Report) -> None:
    for run in report.runs:
        *parts, total = column(composition(report, run), "bytes")
        assert sum(parts) == total == report.arguments.total_bytes + run.peak.total_bytes
