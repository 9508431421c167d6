"""The report as one picture: the modes' bars, and the timeline of every mode. Shapes in pixels, for any painter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from memback.profiling.report import PARTS, Report, Run
from memback.reports import tables
from memback.reports.timeline import BANDS, Timeline
from memback.units import format_bytes, format_bytes_short

__all__ = ["HEIGHT_OF_TEXT", "Area", "Picture", "Rectangle", "Text", "draw"]

WIDTH = 1200
MARGIN = 36
HEIGHT_OF_TEXT = 15
COLUMNS_AT_MOST = 1100

INK, FAINT, LINE, PAPER = "#16202e", "#55617a", "#d9dee8", "#ffffff"
COLOURS = {
    "saved": "#3f74e6",
    "recomputed": "#12a08c",
    "gradients": "#ec8b3a",
    "outputs": "#9483e8",
    "gathered": "#c9a400",
    "buckets": "#8d5f46",
    "workspace": "#d9487f",
    "live": "#7d8798",
}


@dataclass(frozen=True)
class Rectangle:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Area:
    """A filled polygon."""

    points: Sequence[tuple[float, float]]
    colour: str


@dataclass(frozen=True)
class Text:
    """A line of text; ``y`` is its baseline, ``anchor`` what of it is at ``x``."""

    x: float
    y: float
    text: str
    size: int = HEIGHT_OF_TEXT
    colour: str = INK
    anchor: str = "start"


@dataclass(frozen=True)
class Picture:
    """What to paint, in order."""

    width: int
    height: int
    title: str
    shapes: Sequence[Rectangle | Area | Text]


def draw(report: Report) -> Picture:
    """The picture of a report: a pair of bars a mode on one scale, then a timeline a mode on one scale."""
    timelines = [Timeline(run) for run in report.runs]
    timelines = [timeline for timeline in timelines if timeline.events]
    shapes: list[Rectangle | Area | Text] = [
        Text(MARGIN, 50, tables.printable(report.profile.name), 28),
        Text(MARGIN, 76, tables.printable(tables.headline(report)), 13, FAINT),
    ]
    y = 110.0
    shapes += _legend(report.parts, y)
    y += 24
    most = max([1, *(run.peak.total_bytes for run in report.runs), *(run.saved_bytes for run in report.runs)])
    for run in report.runs:
        shapes += _bars(run, y, most)
        y += 62
    top = max([1, *(timeline.top for timeline in timelines)])
    for timeline in timelines:
        shapes += _timeline(timeline, y + 20, top)
        y += 200
    return Picture(WIDTH, round(y + 40), tables.headline(report), shapes)


def _legend(parts: Sequence[str], y: float) -> Iterator[Rectangle | Text]:
    x = float(MARGIN)
    for band in parts:
        yield Rectangle(x, y - 11, 12, 12, COLOURS[band])
        yield Text(x + 18, y, band, 13, FAINT)
        x += 120


def _bars(run: Run, y: float, most: int) -> Iterator[Rectangle | Text]:
    left, right = 330.0, 330.0
    scale = (WIDTH - left - right) / most
    peak = run.peak
    parts = {part: getattr(peak, part) for part in PARTS}
    yield Text(MARGIN, y + 27, tables.printable(run.label), 16)
    for row, (name, sizes) in enumerate({"saved": {"saved": run.saved_bytes}, "peak": parts}.items()):
        at = y + 4 + 24 * row
        total = sum(sizes.values())
        yield Text(left - 10, at + 14, name, 13, FAINT, "end")
        yield Rectangle(left, at, WIDTH - left - right, 18, "#eef1f6")
        x = left
        for part, size in sizes.items():
            yield Rectangle(x, at, size * scale, 18, COLOURS[part])
            x += size * scale
        yield Text(WIDTH - MARGIN, at + 14, format_bytes(total), 13, INK, "end")


def _timeline(timeline: Timeline, y: float, top: int) -> Iterator[Rectangle | Area | Text]:
    """Live bytes by category over the events, with the peak."""
    left, width, height = 130.0, WIDTH - 130.0 - MARGIN, 130.0
    run, floor = timeline.run, y + 20 + height
    scale = height / top
    yield Text(MARGIN, y + 6, f"live bytes of {tables.printable(run.label)}, event by event", 13)
    for share in (0.0, 0.5, 1.0):
        yield Rectangle(left, floor - share * height, width, 1, LINE)
        yield Text(left - 8, floor - share * height + 4, format_bytes_short(round(share * top)), 12, FAINT, "end")
    chosen = _columns(timeline)
    bounds = [*(left + width * time / timeline.length for time in chosen), left + width]
    below = [0] * len(chosen)
    for band, name in enumerate(BANDS):
        sizes = [timeline.totals[time][band] for time in chosen]
        if any(sizes):
            upper = [low + size for low, size in zip(below, sizes, strict=True)]
            yield Area(_steps(bounds, below, upper, floor, scale), COLOURS[name])
            below = upper
    moment = timeline.peak()
    if moment is not None:
        x = left + width * moment.time / timeline.length
        live, total = sum(timeline.totals[moment.time]), run.peak.total_bytes
        yield Rectangle(x - 1, floor - total * scale, 2, max(0, total - live) * scale, COLOURS["workspace"])
        words = f"peak {format_bytes(total)}: {tables.printable(tables.place(run))}"
        anchor = "start" if x < WIDTH / 2 else "end"
        yield Text(x, min(floor - total * scale - 5, floor - 8), words, 12, INK, anchor)


def _columns(timeline: Timeline) -> list[int]:
    """Events to draw: of each of many stretches the highest, so that no peak is lost."""
    live = [sum(total) for total in timeline.totals]
    count = min(COLUMNS_AT_MOST, timeline.length)
    ends = [timeline.length * i // count for i in range(count + 1)]
    return [max(range(a, b), key=live.__getitem__) for a, b in pairwise(ends)]


def _steps(
    bounds: Sequence[float], below: Sequence[int], upper: Sequence[int], floor: float, scale: float
) -> list[tuple[float, float]]:
    """The outline of a band that has one height from each bound to the next."""
    edges = list(pairwise(bounds))
    there = [(x, floor - high * scale) for edge, high in zip(edges, upper, strict=True) for x in edge]
    back = [(x, floor - low * scale) for edge, low in zip(edges, below, strict=True) for x in edge]
    return there + back[::-1]
