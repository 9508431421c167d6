"""SVG: the picture of a report as text, without a browser or a library."""

from __future__ import annotations

import html
from collections.abc import Callable

from memback.profiling.report import Report
from memback.reports.picture import PAPER, Area, Picture, Rectangle, Text, draw

__all__ = ["render"]

_FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def render(report: Report) -> str:
    """The report's picture. Sizes stand in it exactly."""
    picture = draw(report)
    shapes = "\n".join(_WRITERS[type(shape)](shape) for shape in picture.shapes)
    return f"{_open(picture)}\n{shapes}\n</svg>\n"


def _open(picture: Picture) -> str:
    size = f'width="{picture.width}" height="{picture.height}" viewBox="0 0 {picture.width} {picture.height}"'
    title = f"<title>{html.escape(picture.title)}</title>"
    paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{_FONT}" role="img">{title}{paper}'


def _rectangle(shape: Rectangle) -> str:
    place = f'x="{shape.x:.2f}" y="{shape.y:.2f}" width="{shape.width:.2f}" height="{shape.height:.2f}"'
    return f'<rect {place} fill="{shape.colour}"/>'


def _area(shape: Area) -> str:
    points = " ".join(f"{x:.2f},{y:.2f}" for x, y in shape.points)
    return f'<polygon points="{points}" fill="{shape.colour}"/>'


def _text(shape: Text) -> str:
    place = f'x="{shape.x:.2f}" y="{shape.y:.2f}" font-size="{shape.size}" text-anchor="{shape.anchor}"'
    return f'<text {place} fill="{shape.colour}">{html.escape(shape.text)}</text>'


_WRITERS: dict[type, Callable[..., str]] = {Rectangle: _rectangle, Area: _area, Text: _text}
