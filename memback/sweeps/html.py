"""A sweep as a heat-map in one HTML page that works offline: two axes, a value, and a place on all other axes."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memback._version import __version__
from memback.errors import UsageError
from memback.profiling.schema import choose
from memback.reports import pages
from memback.reports.tables import printable
from memback.sweeps.grid import Grid, settings_text
from memback.sweeps.point import Row
from memback.sweeps.summary import VALUES, headline, tables

__all__ = ["View", "payload", "render"]


@dataclass(frozen=True)
class View:
    """What the heat-map shows at first: the axes' keys (``y`` is None where there is one axis), and a value's name."""

    x: str
    y: str | None
    value: str

    @classmethod
    def of(cls, grid: Grid, x: str | None = None, y: str | None = None, value: str | None = None) -> View:
        """A view of a grid; what is not given is its first key, its first other key, and the peak.

        Raises:
            UsageError: the grid has no such key, both are the same, or there is no such value.
        """
        keys = [axis.key for axis in grid.axes]
        for name, key in (("--x", x), ("--y", y)):
            if key is not None and key not in keys:
                raise UsageError(f"{name} {key}: the grid is over {', '.join(keys)}")
        if x is not None and x == y:
            raise UsageError(f"--x and --y are both {x}: give two keys")
        if value is not None and value not in VALUES:
            raise UsageError(f"--value: {choose('value', value, VALUES)}")
        across = x or next(key for key in keys if key != y)
        upwards = y or next((key for key in keys if key != across), None)
        return cls(across, upwards, value or "peak")


def render(grid: Grid, rows: Sequence[Row], view: View) -> str:
    """The page."""
    created = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        pages.environment()
        .get_template("sweep.html.jinja")
        .render(
            title=printable(grid.profile.name),
            version=__version__,
            created=created,
            headline=headline(grid, rows),
            tables=tables(grid, rows),
            **pages.parts("sweep.js", payload(grid, rows, view)),
        )
    )


def payload(grid: Grid, rows: Sequence[Row], view: View) -> dict[str, Any]:
    """The sweep as the page's script reads it: a column for each value, an entry for each point of the grid.

    A point's number says where it is: the last axis changes fastest. ``notes`` says by number what went wrong.
    """
    known = {row.point: row for row in rows}
    every = [known.get(number) for number in range(len(grid))]
    values = [
        {"name": name, "title": one.title, "unit": one.unit, "data": [row and one.get(row) for row in every]}
        for name, one in VALUES.items()
        if any(one.get(row) is not None for row in rows)
    ]
    return {
        "axes": [
            {
                "key": axis.key,
                "values": [settings_text({axis.key: value.shown}).partition("=")[2] for value in axis.values],
            }
            for axis in grid.axes
        ],
        "values": values,
        "notes": {row.point: printable(note) for row in rows if (note := _note(row))},
        "view": {"x": view.x, "y": view.y, "value": view.value},
    }


def _note(row: Row) -> str:
    if row.error:
        return row.error
    return "no plan fits" if row.plan is not None and not row.plan.fits else ""
