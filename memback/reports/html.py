"""HTML: one file that works offline, with everything that the report holds to be looked at, hovered and zoomed.

The page is a template of :mod:`memback.reports.pages`. What is drawn in the browser gets the report as columns of
numbers (:func:`payload`), and draws with Plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memback import glossary
from memback.engine.arrays import form
from memback.profiling.report import PARTS, Device, Layer, Report, Run
from memback.reports import device, pages, tables, words
from memback.reports.folding import fold
from memback.reports.timeline import BANDS, Timeline
from memback.reports.tree import tree

__all__ = ["fragment", "payload", "render"]

_TREE_AT_MOST = 20_000


def render(report: Report) -> str:
    """The report as one HTML page."""
    return (
        pages.environment()
        .get_template("report.html.jinja")
        .render(
            version=report.memback,
            created=report.created,
            machine=tables.printable(words.machine(report)),
            arguments=list(report.arguments.by_name().items()),
            **pages.parts("app.js", payload(report)),
            **_overview(report),
        )
    )


def fragment(report: Report) -> str:
    """The overview for a notebook's cell: sentences, bars and tables, no script, styles for nothing but itself."""
    return pages.environment().get_template("notebook.html.jinja").render(**_overview(report))


def _overview(report: Report) -> dict[str, Any]:
    return {
        "title": tables.printable(report.profile.name),
        "headline": tables.printable(tables.headline(report)),
        "facts": [tables.printable(fact) for fact in words.facts(report)],
        "device": None if report.device is None else _device(report.device),
        "warnings": [tables.printable(warning) for warning in tables.warnings(report)],
        "sentences": [tables.printable(sentence) for sentence in words.sentences(report)],
        "parts": report.parts,
        "ranks": tables.ranks(report) if report.distributed is not None and report.distributed.ranks else None,
        "modes": _modes(report),
        "tables": tables.overview(report),
    }


# -- what the page shows without a script


def _device(on: Device) -> dict[str, Any]:
    """A training step on the device that is predicted for."""
    return {
        "fits": device.fits(on),
        "verdict": tables.printable(device.verdict(on)),
        "bars": device.bars(on),
        "memory": on.memory_bytes,
        "table": device.make_up(on),
        "picture": device.picture(on),
    }


def _modes(report: Report) -> list[dict[str, Any]]:
    """The bars of the comparison, all on one scale: the largest of all sizes is 100 %."""
    most = max([1, *(run.peak.total_bytes for run in report.runs), *(run.saved_bytes for run in report.runs)])
    return [
        {
            "label": tables.printable(run.label),
            "meaning": glossary.MODES[run.mode],
            "saved": run.saved_bytes,
            "saved_width": 100 * run.saved_bytes / most,
            "peak": run.peak.total_bytes,
            "place": tables.printable(tables.place(run)),
            "parts": [
                {"name": name, "bytes": size, "width": 100 * size / most}
                for name in PARTS
                if (size := getattr(run.peak, name))
            ],
        }
        for run in report.runs
    ]


# -- what the script draws from


class _Strings:
    """Every text once; other places hold its number."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.known.setdefault(tables.printable(text), len(self.known))


def payload(report: Report) -> dict[str, Any]:
    """The report as the page's script reads it: columns of numbers, and numbers of texts in ``strings``."""
    strings = _Strings()
    strings("")
    runs = [_run(run, strings) for run in report.runs]
    return {
        "name": tables.printable(report.profile.name),
        "bands": BANDS,
        "runs": runs,
        "frontier": [list(point) for point in report.frontier],
        "knee": _knee(report),
        "strings": list(strings.known),
    }


def _knee(report: Report) -> int | None:
    """Which point of the frontier is its knee."""
    if not report.frontier:
        return None
    from memback.plans.model.planning import FrontierPoint, knee  # plans are loaded only if there are some

    points = [FrontierPoint(*point) for point in report.frontier]
    return points.index(knee(sorted(points)))


def _run(run: Run, strings: _Strings) -> dict[str, Any]:
    timeline = Timeline(run)
    return {
        "label": tables.printable(run.label),
        "mode": run.mode,
        "saved_bytes": run.saved_bytes,
        "flops": run.flops,
        "recomputed_flops": run.recomputed_flops,
        "place": tables.printable(tables.place(run)),
        "peak_bytes": run.peak.total_bytes,
        "peak": _peak(timeline),
        "length": timeline.length,
        "forward_end": timeline.forward_end,
        "told": timeline.told,
        **_lives(timeline, strings),
        "places": _places(timeline, strings),
        "layers": _layers(run.layers, strings),
        "folds": _folds(run.layers),
        "tree": _tree(run, strings),
    }


def _peak(timeline: Timeline) -> dict[str, Any] | None:
    moment = timeline.peak()
    if moment is None:
        return None
    return {"time": moment.time, "parts": moment.parts, "unplaced": moment.unplaced}


def _lives(timeline: Timeline, strings: _Strings) -> dict[str, Any]:
    lives = list(timeline.lives.values())
    number = {life.buffer: i for i, life in enumerate(lives)}
    buffers = {name: [getattr(life, name) for life in lives] for name in ("bytes", "birth", "death")}
    buffers |= {name: [strings(getattr(life, name)) for life in lives] for name in ("origin", "path", "op", "source")}
    spans = {
        "buffer": [number[span.buffer] for span in timeline.spans],
        "band": [BANDS.index(span.category) for span in timeline.spans],
        "start": [span.start for span in timeline.spans],
        "end": [span.end for span in timeline.spans],
    }
    return {"buffers": buffers, "spans": spans}


def _places(timeline: Timeline, strings: _Strings) -> dict[str, list[int]]:
    """Where the step is: a new entry wherever phase, layer or op change."""
    columns: dict[str, list[int]] = {"start": [], "phase": [], "path": [], "op": []}
    before = None
    for time, event in enumerate(timeline.events):
        here = (event.phase, event.path, event.op)
        if here != before:
            columns["start"].append(time)
            for name, text in zip(("phase", "path", "op"), here, strict=True):
                columns[name].append(strings(text))
            before = here
    return columns


def _layers(layers: Sequence[Layer], strings: _Strings) -> list[list[Any]]:
    """Rows in the order of the page's columns, then what each one saves."""
    return [
        [
            strings(layer.path),
            strings(layer.op),
            layer.call,
            layer.count,
            strings(form(layer.dtype, layer.output_shape) if layer.dtype else ""),
            layer.saved_bytes,
            layer.shared_bytes,
            layer.parameter_bytes,
            layer.flops,
            layer.seconds,
            int(layer.recomputed),
            [[strings(v.name), v.bytes, strings(v.origin), strings(v.source)] for v in layer.saved],
        ]
        for layer in layers
    ]


def _folds(layers: Sequence[Layer]) -> list[list[Any]]:
    """Rows that stand for several layers: what they are called, and which ones they are."""
    number = {id(layer): i for i, layer in enumerate(layers)}
    return [[tables.printable(row.path), [number[id(layer)] for layer in row.layers]] for row in fold(layers)]


def _tree(run: Run, strings: _Strings) -> dict[str, list[int]]:
    """The tree as Plotly's treemap takes it. Of very many nodes, what is below the largest is left out, level by level.

    A node without children is drawn as a whole, so that sums stay true whatever is left out.
    """
    nodes = list(tree(run).walk())
    deepest = max((depth for depth, _ in nodes), default=0)
    while len(nodes) > _TREE_AT_MOST and deepest > 1:
        deepest -= 1
        nodes = [(depth, node) for depth, node in nodes if depth <= deepest]
    columns: dict[str, list[int]] = {"parent": [], "name": [], "bytes": [], "op": [], "note": []}
    above: list[int] = []
    for number, (depth, node) in enumerate(nodes):
        columns["parent"].append(above[depth - 1] if depth else -1)
        columns["name"].append(strings(node.name))
        columns["bytes"].append(node.bytes)
        columns["op"].append(strings(node.op))
        columns["note"].append(strings(node.note))
        above[depth:] = [number]
    return columns
