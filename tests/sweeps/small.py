"""A small sweep, and its rows."""

from __future__ import annotations

from collections.abc import Sequence

from memback.profiling.definition import Profile, load
from memback.sweeps.grid import PLANNER, Grid, parse_axis
from memback.sweeps.point import Row, Task, run


def grid(*axes: str, profile: str | Profile = "digits", budget: int | None = None, planner: str = PLANNER) -> Grid:
    loaded = load(profile) if isinstance(profile, str) else profile
    return Grid(loaded, tuple(parse_axis(axis, loaded, axes) for axis in axes), budget, planner)


def rows_of(one: Grid) -> list[Row]:
    """Rows by running each point by itself."""
    return [row for point in one.points for row in run(Task(one.profile, (point,))).rows]


def numbers(rows: Sequence[Row]) -> list[int]:
    return [row.point for row in rows]
