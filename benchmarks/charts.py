"""Charts for the results page, as SVG that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#9aa5b1", "#1f6feb", "#0b3d91", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#e8a000")


def bars(title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Horizontal bars in groups, on a logarithmic axis with a line at 1."""
    low, high = 0.4, max(2.0, *(v for values in series.values() for v in values)) * 1.3
    left, width, bar, gap = 260, 620, 14, 34
    height = 50 + len(groups) * (len(series) * bar + gap)

    def x(value: float) -> float:
        return left + width * math.log(max(value, low) / low) / math.log(high / low)

    body = [_text(10, 22, title, size=15, weight="bold")]
    y = 44.0
    for i, group in enumerate(groups):
        body.append(_text(10, y + 12, group, weight="bold"))
        y += 20
        for k, (name, values) in enumerate(series.items()):
            body.append(_text(left - 8, y + 11, name, anchor="end", size=11))
            body.append(
                f'<rect x="{left}" y="{y}" width="{x(values[i]) - left:.1f}" height="{bar - 3}"'
                f' fill="{COLOURS[k % len(COLOURS)]}"/>'
            )
            body.append(_text(x(values[i]) + 5, y + 11, f"{values[i]:.2f}", size=11))
            y += bar
        y += gap - 20
    body.insert(1, f'<path d="M{x(1):.1f} 40V{y:.0f}" stroke="#333" stroke-dasharray="3 3"/>')  # under the numbers
    return _svg(left + width + 60, height, body)


def lines(title: str, axes: tuple[str, str], series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines through points, both axes logarithmic."""
    points = [p for values in series.values() for p in values]
    spans = [(min(p[d] for p in points), max(p[d] for p in points)) for d in (0, 1)]
    left, top, width, height = 80, 40, 520, 300

    def place(p: tuple[float, float]) -> tuple[float, float]:
        fx, fy = (math.log(p[d] / spans[d][0]) / (math.log(spans[d][1] / spans[d][0]) or 1) for d in (0, 1))
        return left + width * fx, top + height * (1 - fy)

    body = [_text(10, 22, title, size=15, weight="bold"), _text(left + width / 2, top + height + 38, axes[0], "middle")]
    body.append(_text(left, top - 6, axes[1], size=11))
    body.append(f'<path d="M{left} {top}V{top + height}H{left + width}" fill="none" stroke="#333"/>')
    floor, wall = spans[1][0], spans[0][0]
    for tick in _ticks(*spans[0], base=2):
        body += [_text(place((tick, floor))[0], top + height + 16, f"{tick:g}", "middle", 11)]
    for tick in _ticks(*spans[1], base=10):
        body += [_text(left - 6, place((wall, tick))[1] + 4, f"{tick:g}", "end", 11)]
    for k, (name, values) in enumerate(series.items()):
        colour = COLOURS[(k + 1) % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, values))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = place(values[-1])
        body.append(_text(x + 6, y + 4, name, size=11, fill=colour))
    return _svg(left + width + 220, top + height + 50, body)


def _ticks(low: float, high: float, base: int) -> list[float]:
    powers = range(math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9) + 1)
    return [float(base) ** power for power in powers]


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 12, weight: str = "normal", fill: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        f' fill="{fill}" stroke="#fff" stroke-width="3" paint-order="stroke">{escape(text)}</text>'
    )


def _svg(width: float, height: float, body: list[str]) -> str:
    inner = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{inner}\n</svg>\n'
    )
