"""CSV: one line a layer of every run, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io

from memback.profiling.report import Layer, Report
from memback.reports import tables

__all__ = ["render"]

_RUN = ("mode", "policy")
_LAYER = (
    "path",
    "op",
    "call",
    "count",
    "output_shape",
    "dtype",
    "saved_bytes",
    "shared_bytes",
    "parameter_bytes",
    "flops",
    "seconds",
    "recomputed",
    "saved",
)
_TOTALS = ("saved_bytes", "predicted_peak_bytes", "measured_peak_bytes")


def render(report: Report) -> str:
    """The layers of every run, control characters in names escaped, and an apostrophe before what looks like a formula.

    Columns ``run_…`` repeat the run's totals on each line: not to be summed.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*_RUN, *_LAYER, *(f"run_{name}" for name in _TOTALS)))
    for run in report.runs:
        totals = [getattr(run, name) for name in _TOTALS]
        writer.writerows([*map(_inert, (run.mode, run.policy)), *_cells(layer), *totals] for layer in run.layers)
    return file.getvalue()


def _cells(layer: Layer) -> list[object]:
    cells = {name: getattr(layer, name) for name in _LAYER}
    cells["output_shape"] = "x".join(map(str, layer.output_shape))
    cells["recomputed"] = int(layer.recomputed)
    cells["saved"] = "; ".join(f"{v.name} {v.bytes} B, {v.origin}, {v.source}" for v in layer.saved)
    return list(map(_inert, cells.values()))


def _inert(cell: object) -> object:
    """A cell without control characters, which would break lines, and without formulas."""
    return tables.cell_text(cell) if isinstance(cell, str) else cell
