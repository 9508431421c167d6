"""A sweep at a glance: the best and the worst points, what fits, what each value does, what failed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from memback.plans.model.planning import RESERVE
from memback.reports.tables import NONE, Cell, Column, Row, Table
from memback.sweeps import point as work
from memback.sweeps.grid import Axis, Grid, settings_text
from memback.units import format_bytes_short, format_flops

__all__ = ["VALUES", "Quantity", "counts", "headline", "tables", "value_of"]

_ALL_AT_MOST = 20
_VALUES_AT_MOST = 16
_REASONS_AT_MOST = 8


class Quantity(NamedTuple):
    """A quantity of points, by which they are compared: its title, its unit, and the field of a row that it is."""

    title: str
    unit: str
    part: str
    field: str

    def get(self, row: work.Row) -> int | None:
        """The quantity of a point; None where it has none."""
        figures = getattr(row, self.part)
        found: int | None = None if figures is None else getattr(figures, self.field)
        return found


VALUES: dict[str, Quantity] = {
    "saved_bytes": Quantity("saved bytes of full", "B", "full", "saved_bytes"),
    "peak": Quantity("peak of full", "B", "full", "peak_bytes"),
    "checkpoint_saved_bytes": Quantity("saved bytes of checkpoint", "B", "checkpoint", "saved_bytes"),
    "checkpoint_peak": Quantity("peak of checkpoint", "B", "checkpoint", "peak_bytes"),
    "inference_peak": Quantity("peak of inference", "B", "inference", "peak_bytes"),
    "flops": Quantity("FLOPs of a forward pass", "FLOP", "full", "flops"),
    "recomputed_flops": Quantity("FLOPs that checkpoint recomputes", "FLOP", "checkpoint", "recomputed_flops"),
    "parameter_bytes": Quantity("parameters", "B", "arguments", "parameter_bytes"),
    "plan_peak": Quantity("peak of the plan", "B", "plan", "peak_bytes"),
    "plan_extra_flops": Quantity("FLOPs that the plan recomputes", "FLOP", "plan", "extra_flops"),
    "least_budget": Quantity("budget that the leanest plan needs", "B", "plan", "least_budget_bytes"),
}
"""What a heat-map can show, by name."""


def value_of(row: work.Row, name: str) -> int | None:
    """A row's value of one of :data:`VALUES`."""
    return VALUES[name].get(row)


def headline(grid: Grid, rows: Sequence[work.Row]) -> str:
    """What was swept, and what became of it."""
    found = Counter(row.status for row in rows)
    over = " × ".join(f"{len(axis.values)} {axis.key}" for axis in grid.axes)
    parts = [f"{found[status]:,} {status}" for status in ("done", "failed", "lost") if found[status]]
    missing = len(grid) - len(rows)
    parts += [f"{missing:,} not run yet"] if missing else []
    return f"{grid.profile.name}: {len(grid):,} points ({over}), {', '.join(parts) or 'none run'}"


def tables(grid: Grid, rows: Sequence[work.Row]) -> list[Table]:
    """Every table of the summary that has something to say."""
    known = [row for row in rows if row.full is not None]
    found = [_points(grid, rows)] if 0 < len(rows) <= _ALL_AT_MOST else []
    if len(known) > 1:
        found.append(_extremes(known))
    if any(row.plan is not None for row in known):
        found.append(_budgets(known))
    if len(known) > _ALL_AT_MOST:
        found.append(_effects(grid, known))
    if any(row.error for row in rows):
        found.append(_errors(rows))
    return found


# -- every point


def _points(grid: Grid, rows: Sequence[work.Row]) -> Table:
    planned = any(row.plan is not None for row in rows)
    columns = [
        Column("point", "key"),
        Column("saved full", group=1),
        Column("peak full", group=1),
        Column("peak checkpoint", group=1),
        Column("peak inference", group=1),
        *([Column("peak plan", group=2), Column("recomputed", group=2)] if planned else []),
    ]
    names = ("saved_bytes", "peak", "checkpoint_peak", "inference_peak")
    body = [
        Row(
            [
                Cell(settings_text(row.settings)),
                *(_size(value_of(row, name)) if row.full else Cell(row.status, "bad") for name in names),
                *(_plan_cells(row) if planned else ()),
            ]
        )
        for row in rows
    ]
    policies = list(dict.fromkeys(row.policy for row in rows if row.policy))
    notes = [f"Checkpoint: policy {policies[0]}."] if len(policies) == 1 else []
    notes += ["Recomputed: FLOPs that the plan recomputes, as a share of a forward pass."] if planned else []
    return Table("Points", columns, body, notes=notes)


def _plan_cells(row: work.Row) -> tuple[Cell, Cell]:
    plan = row.plan
    if row.full is None:
        return Cell(row.status, "bad"), Cell("")
    if plan is None:
        return Cell(NONE, "faint"), Cell(NONE, "faint")
    if not plan.fits:
        return Cell("none fits", "bad"), Cell(f"from {format_bytes_short(plan.least_budget_bytes or 0)}")
    return _size(plan.peak_bytes), Cell(_share(plan.extra_flops, row.full.flops))


def _share(part: int | None, whole: int) -> str:
    return f"{100 * (part or 0) / max(whole, 1):.1f} %"


# -- best and worst


def _extremes(rows: Sequence[work.Row]) -> Table:
    """The points with the least and the most of everything that differs between points."""
    body = []
    for name, quantity in VALUES.items():
        having = [(value, row) for row in rows if (value := value_of(row, name)) is not None]
        amounts = {value for value, _ in having}
        if len(amounts) < 2 or name == "least_budget":
            continue
        for word, amount in (("least", min(amounts)), ("most", max(amounts))):
            points = [row.settings for value, row in having if value == amount]
            title = f"{word} {quantity.title}"
            body.append(
                Row([Cell(title), _amount(amount, quantity), Cell(f"{len(points):,}"), Cell(_in_common(points))])
            )
    columns = [Column("of all points", "key"), Column("value"), Column("points"), Column("in common", "text")]
    return Table("Best and worst", columns, body)


def _in_common(points: Sequence[dict[str, Any]]) -> str:
    first = points[0]
    common = {key: value for key, value in first.items() if all(point[key] == value for point in points)}
    return settings_text(common) or "nothing"


# -- what fits


def _budgets(rows: Sequence[work.Row]) -> Table:
    body = []
    planned = [row for row in rows if row.plan is not None]
    for budget in sorted({row.plan.budget_bytes for row in planned if row.plan is not None}):
        mine = [row for row in planned if row.plan is not None and row.plan.budget_bytes == budget]
        fitting = [row for row in mine if row.plan is not None and row.plan.fits]
        leanest = min((n for row in mine if (n := value_of(row, "least_budget")) is not None), default=None)
        body.append(
            Row(
                [
                    Cell(format_bytes_short(budget)),
                    Cell(f"{len(mine):,}"),
                    Cell(f"{_fits(mine, 'peak', budget):,}"),
                    Cell(f"{_fits(mine, 'checkpoint_peak', budget):,}"),
                    Cell(f"{len(fitting):,}", "good" if fitting else "bad"),
                    Cell(f"{len(mine) - len(fitting):,}", "faint" if len(mine) == len(fitting) else "bad"),
                    _size(leanest),
                ]
            )
        )
    columns = [
        Column("budget", "key"),
        Column("points", group=1),
        Column("as they are", group=1),
        Column("with their policy", group=1),
        Column("with a plan", group=1),
        Column("no plan fits", group=1),
        Column("the nearest needs", group=1),
    ]
    planners = ", ".join(sorted({row.plan.planner for row in planned if row.plan is not None}))
    notes = [f"Each leaves {format_bytes_short(RESERVE)} for what no array holds. Plans are those of {planners}."]
    return Table("What fits its budget", columns, body, notes=notes)


def _fits(rows: Sequence[work.Row], name: str, budget: int) -> int:
    return sum(peak + RESERVE <= budget for row in rows if (peak := value_of(row, name)) is not None)


# -- what each axis does


def _effects(grid: Grid, rows: Sequence[work.Row]) -> Table:
    body = [Row(cells) for axis in grid.axes for cells in _axis_cells(axis, rows)]
    columns = [
        Column("value", "key"),
        Column("points"),
        Column("least peak full", group=1),
        Column("most peak full", group=1),
        Column("least peak checkpoint", group=1),
        Column("most peak checkpoint", group=1),
    ]
    return Table("By value", columns, body)


def _axis_cells(axis: Axis, rows: Sequence[work.Row]) -> Iterator[list[Cell]]:
    by_value: dict[Any, list[work.Row]] = {}
    for row in rows:
        by_value.setdefault(row.settings[axis.key], []).append(row)
    shown = [value.shown for value in axis.values if value.shown in by_value]
    for shown_value in shown[:_VALUES_AT_MOST]:
        mine = by_value[shown_value]
        cells = [Cell(settings_text({axis.key: shown_value})), Cell(f"{len(mine):,}")]
        for name in ("peak", "checkpoint_peak"):
            peaks = [peak for row in mine if (peak := value_of(row, name)) is not None]
            cells += [_size(min(peaks, default=None)), _size(max(peaks, default=None))]
        yield cells
    if len(shown) > _VALUES_AT_MOST:
        yield [Cell(f"… {len(shown) - _VALUES_AT_MOST} more values of {axis.key}"), *[Cell("")] * 5]


# -- what went wrong


def _errors(rows: Sequence[work.Row]) -> Table:
    reasons: dict[str, list[work.Row]] = {}
    for row in rows:
        if row.error:
            reasons.setdefault(row.error, []).append(row)
    most = sorted(reasons.items(), key=lambda pair: -len(pair[1]))
    body = [
        Row([Cell(error, "bad"), Cell(f"{len(mine):,}"), Cell(_in_common([row.settings for row in mine]))])
        for error, mine in most[:_REASONS_AT_MOST]
    ]
    notes = (
        [f"{len(most) - _REASONS_AT_MOST} more reasons; every row has its own."] if len(most) > _REASONS_AT_MOST else []
    )
    return Table(
        "What failed", [Column("reason", "key"), Column("points"), Column("in common", "text")], body, notes=notes
    )


# -- cells


def _size(size: int | None) -> Cell:
    return Cell(NONE, "faint") if size is None else Cell(format_bytes_short(size))


def _amount(value: int, quantity: Quantity) -> Cell:
    return Cell(format_flops(value)) if quantity.unit == "FLOP" else Cell(f"{value:,} B")


def counts(grid: Grid, rows: Sequence[work.Row]) -> dict[str, Any]:
    """The number of points of each status."""
    planned = [row.plan for row in rows if row.plan is not None]
    return {
        "points": len(grid),
        **{status: sum(row.status == status for row in rows) for status in ("done", "failed", "lost")},
        "plans_fit": sum(plan.fits for plan in planned),
        "no_plan_fits": sum(not plan.fits for plan in planned),
    }
