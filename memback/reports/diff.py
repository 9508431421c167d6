"""What changed from one report to another: mode by mode, the make-up of the peak, and layer by layer.

Layers are matched by path, op and call. The change of the peak is explained twice, and both sums equal it: by
what kind of memory it is, and by which layer made the buffers that are alive then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from memback.errors import MembackError, UsageError
from memback.profiling.report import PARTS, Device, Report, Run
from memback.reports import tables
from memback.reports.folding import span
from memback.reports.tables import Cell, Column, Row, Table
from memback.reports.timeline import Timeline
from memback.units import format_bytes, parse_bytes

__all__ = ["Change", "DeviceDiff", "Diff", "Limit", "RunDiff", "alive_at_peak", "compare"]

SCHEMA = "memback.diff/1"
_ROWS_AT_MOST = 40
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Change:
    """Bytes before and after; None where there is no such thing."""

    name: str
    before: int | None
    after: int | None

    @property
    def difference(self) -> int:
        """How many bytes more it is afterwards."""
        return (self.after or 0) - (self.before or 0)

    @property
    def kind(self) -> str:
        """The kind of change in one word: came, went, grew, shrank or same."""
        if self.before is None:
            return "came"
        if self.after is None:
            return "went"
        return "grew" if self.difference > 0 else "shrank" if self.difference < 0 else "same"

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"name": self.name, "before": self.before, "after": self.after, "kind": self.kind}


@dataclass(frozen=True)
class LayerChange(Change):
    """A layer's saved bytes, before and after."""

    path: str = ""
    op: str = ""
    call: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"path": self.path, "op": self.op, "call": self.call, **super().to_dict()}


@dataclass(frozen=True)
class Limit:
    """How much more is too much: a share of what it was, or bytes."""

    text: str
    share: Fraction | None = None
    bytes: int = 0

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``5%``, ``0%`` or ``10MiB``.

        Raises:
            UsageError: it is neither a percentage nor a byte size.
        """
        number = text.strip().removesuffix("%").strip()
        if text.strip().endswith("%"):
            if not re.fullmatch(r"\d+(\.\d+)?", number, re.ASCII):
                raise UsageError(f"limit {text!r} is no percentage; write it as 5%, 0.5% or, in bytes, 10MiB")
            return cls(text, Fraction(number) / 100)
        try:
            return cls(text, None, parse_bytes(text))
        except UsageError:
            raise UsageError(f"limit {text!r} is neither a percentage nor a size; write it as 5% or 10MiB") from None

    def broken_by(self, change: Change) -> bool:
        """Whether it grew by more than this; a new mode breaks no limit."""
        if change.before is None or change.after is None:
            return False
        allowed = self.bytes if self.share is None else change.before * self.share
        return change.difference > allowed


@dataclass(frozen=True)
class RunDiff:
    """What changed in one mode."""

    label: str
    saved: Change
    peak: Change
    places: tuple[str, str]
    parts: Sequence[Change]
    alive: Sequence[Change]
    layers: Sequence[LayerChange]


@dataclass(frozen=True)
class DeviceDiff:
    """What changed of a training step on the devices that were predicted for, which may be two: a steady step's peak.

    ``parts`` are what the peak is made up of; their changes add up to that of ``reserved``.
    """

    names: tuple[str, str]
    forward: Change
    allocated: Change
    reserved: Change
    parts: Sequence[Change]

    @property
    def totals(self) -> tuple[Change, Change, Change]:
        """All but the parts."""
        return self.forward, self.allocated, self.reserved


@dataclass(frozen=True)
class Diff:
    """What changed between two reports."""

    before: Report
    after: Report
    runs: Sequence[RunDiff]
    only_before: Sequence[str]
    only_after: Sequence[str]
    device: DeviceDiff | None = None

    def broken(self, limit: Limit) -> list[str]:
        """What grew by more than the limit, in words."""
        return [
            f"{run.label}: {change.name} grew from {format_bytes(change.before or 0)} to"
            f" {format_bytes(change.after or 0)}, by {_percent(change)}; allowed is {limit.text}"
            + _blame(run, change is run.peak)
            for run in self.runs
            for change in (run.saved, run.peak)
            if limit.broken_by(change)
        ] + self._broken_on_device(limit)

    def _broken_on_device(self, limit: Limit) -> list[str]:
        if self.device is None:
            return []
        grown = sorted((part for part in self.device.parts if part.difference > 0), key=lambda part: -part.difference)
        why = "; ".join(f"{part.name} {part.difference:+,} B" for part in grown[:3])
        return [
            f"a training step on cuda:{self.device.names[1]}: {change.name} grew from"
            f" {format_bytes(change.before or 0)} to {format_bytes(change.after or 0)}, by {_percent(change)}; allowed"
            f" is {limit.text} ({why})"
            for change in (self.device.allocated, self.device.reserved)
            if limit.broken_by(change)
        ]

    def tables(self) -> list[Table]:
        """Everything as tables: the modes, then of each mode that changed its peak and its layers."""
        found = [_modes(self), *([] if self.device is None else [_on_device(self.device)])]
        for run in self.runs:
            if run.peak.difference:
                found += [_parts(run), *([_alive(run)] if run.alive else [])]
            if run.layers:
                found.append(_layers(run))
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "before": _about(self.before),
            "after": _about(self.after),
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
            "runs": [
                {
                    "mode": run.label,
                    "saved_bytes": run.saved.to_dict(),
                    "peak_bytes": run.peak.to_dict(),
                    "peak_at": {"before": run.places[0], "after": run.places[1]},
                    "peak_parts": [part.to_dict() for part in run.parts],
                    "peak_layers": [layer.to_dict() for layer in run.alive],
                    "layers": [layer.to_dict() for layer in run.layers],
                }
                for run in self.runs
            ],
            "device": None if self.device is None else _device_to_dict(self.device),
        }


def compare(before: Report, after: Report) -> Diff:
    """Compare two reports. Modes are matched by their name, a checkpoint with another policy if it is the only one.

    Raises:
        MembackError: they have no mode in common.
    """
    pairs = list(_pairs(before.runs, after.runs))
    if not pairs:
        had, has = (", ".join(run.label for run in report.runs) or "none" for report in (before, after))
        raise MembackError(f"The reports have no mode in common: {had} before, {has} after")
    paired = {id(run) for pair in pairs for run in pair}
    return Diff(
        before,
        after,
        [_run(*pair) for pair in pairs],
        [run.label for run in before.runs if id(run) not in paired],
        [run.label for run in after.runs if id(run) not in paired],
        _device(before.device, after.device),
    )


def _device(before: Device | None, after: Device | None) -> DeviceDiff | None:
    """None where one of both reports has no training step on a device."""
    if before is None or after is None or before.steady is None or after.steady is None:
        return None
    had, has = before.steady, after.steady
    parts = ({}, {}) if had.peak is None or has.peak is None else (had.peak.by_name(), has.peak.by_name())
    return DeviceDiff(
        (before.name, after.name),
        Change("made by forward", had.forward_bytes, has.forward_bytes),
        Change("allocated peak", had.allocated_peak_bytes, has.allocated_peak_bytes),
        Change("reserved", had.reserved_peak_bytes, has.reserved_peak_bytes),
        [Change(name, parts[0][name], parts[1][name]) for name in parts[0]],
    )


def _device_to_dict(device: DeviceDiff) -> dict[str, Any]:
    return {
        "before": device.names[0],
        "after": device.names[1],
        "steady": {
            "forward_bytes": device.forward.to_dict(),
            "allocated_peak_bytes": device.allocated.to_dict(),
            "reserved_peak_bytes": device.reserved.to_dict(),
            "peak_parts": [part.to_dict() for part in device.parts],
        },
    }


def _pairs(before: Sequence[Run], after: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    labels = {run.label: run for run in after}
    for run in before:
        alike = [other for other in after if other.mode == run.mode]
        if run.label in labels:
            yield run, labels[run.label]
        elif len(alike) == 1 and sum(other.mode == run.mode for other in before) == 1:
            yield run, alike[0]


def _run(before: Run, after: Run) -> RunDiff:
    label = before.label if before.label == after.label else f"{before.label} → {after.label}"
    return RunDiff(
        label,
        Change("saved bytes", before.saved_bytes, after.saved_bytes),
        Change("peak", before.peak.total_bytes, after.peak.total_bytes),
        (tables.place(before), tables.place(after)),
        [Change(name, getattr(before.peak, name), getattr(after.peak, name)) for name in PARTS],
        _changes(alive_at_peak(before), alive_at_peak(after)),
        _layer_changes(before, after),
    )


def alive_at_peak(run: Run) -> dict[str, int]:
    """Bytes live at the peak by the op that made them; they add up to the peak."""
    timeline = Timeline(run)
    moment = timeline.peak()
    if moment is None:
        return {}
    sizes: dict[str, int] = {}
    for found in timeline.alive(moment.time):
        life = timeline.lives[found.buffer]
        name = f"{life.path or '(top)'} {life.op}, {found.category}"
        sizes[name] = sizes.get(name, 0) + found.bytes
    for category, size in moment.unplaced.items():
        sizes[f"being made at the peak, {category}"] = size
    sizes["workspace of the op"] = run.peak.workspace
    return {name: size for name, size in sizes.items() if size}


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[Change]:
    """The differences, the largest first; none if one of both is unknown."""
    if not before or not after:
        return []
    names = dict.fromkeys([*before, *after])
    changes = [Change(name, before.get(name), after.get(name)) for name in names]
    return sorted((c for c in changes if c.difference), key=lambda change: -abs(change.difference))


def _layer_changes(before: Run, after: Run) -> list[LayerChange]:
    """Layers that keep more or less, and those that came or went and keep something; the largest difference first."""
    had, has = _saved(before), _saved(after)
    changes = [
        LayerChange(f"{path or '(top)'} {op}", had.get(key), has.get(key), path, op, call)
        for key in dict.fromkeys([*had, *has])
        for path, op, call in [key]
    ]
    return sorted((c for c in changes if c.difference), key=lambda change: -abs(change.difference))


def _saved(run: Run) -> dict[tuple[str, str, int], int]:
    sizes: dict[tuple[str, str, int], int] = {}
    for layer in run.layers:
        key = (layer.path, layer.op, layer.call)
        sizes[key] = sizes.get(key, 0) + layer.saved_bytes
    return sizes


def _about(report: Report) -> dict[str, Any]:
    return {"name": report.profile.name, "created": report.created, "sha256": report.profile.sha256}


# -- as tables


def _modes(diff: Diff) -> Table:
    columns = [Column("mode", "key"), *_BEFORE_AFTER, Column("%", group=1)]
    rows = [
        Row([Cell(f"{run.label}, {change.name}"), *_cells(change), Cell(_percent(change), _mark(change))])
        for run in diff.runs
        for change in (run.saved, run.peak)
    ]
    names = {report.profile.name for report in (diff.before, diff.after)}
    notes = (
        [f"Before: {tables.headline(diff.before)}", f"After: {tables.headline(diff.after)}"] if len(names) > 1 else []
    )
    notes += [f"Only before: {', '.join(diff.only_before)}."] if diff.only_before else []
    notes += [f"Only after: {', '.join(diff.only_after)}."] if diff.only_after else []
    return Table(f"Memory of {' and '.join(sorted(names))}, before and after", columns, rows, notes=notes)


_BEFORE_AFTER = (Column("before", group=1), Column("after", group=1), Column("change", group=1))


def _on_device(device: DeviceDiff) -> Table:
    """A steady training step: what its peak is made up of, and the sum, which is what is reserved."""
    had, has = device.names
    where = f"cuda:{had}" if had == has else f"cuda:{had} before, on cuda:{has} after"
    rows = [Row([Cell(part.name), *_cells(part), Cell(_percent(part), _mark(part))]) for part in device.parts]
    shown = [row for row, part in zip(rows, device.parts, strict=True) if part.before or part.after]
    total = device.reserved
    notes = [
        f"{change.name[0].upper()}{change.name[1:]}: {change.before:,} B before, {change.after:,} B after"
        f" ({change.difference:+,} B)."
        for change in (device.allocated, device.forward)
    ]
    return Table(
        f"A steady training step on {where}: what its peak is made up of",
        [Column("memory", "key"), *_BEFORE_AFTER, Column("%", group=1)],
        shown,
        Row([Cell(total.name), *_cells(total), Cell(_percent(total), _mark(total))]),
        notes=notes,
    )


def _parts(run: RunDiff) -> Table:
    rows = [Row([Cell(part.name), *_cells(part)]) for part in run.parts if part.before or part.after]
    had, has = run.places
    where = f"Both at the {had}." if had == has else f"Before at the {had}; after at the {has}."
    columns = [Column("memory", "key"), *_BEFORE_AFTER]
    return Table(f"The peak of {run.label}", columns, rows, Row([Cell("peak"), *_cells(run.peak)]), notes=[where])


def _alive(run: RunDiff) -> Table:
    """Who made what is alive at the peak, as far as it changed; the changes add up to that of the peak."""
    folded = _folded([(change.name, "", change) for change in run.alive])
    rows = [Row([Cell(name), Cell(change.kind), *_cells(change)]) for name, _, change in folded[:_ROWS_AT_MOST]]
    rows += _rest(folded, 3)
    total = Row([Cell("change of the peak"), Cell(""), Cell(""), Cell(""), _signed(run.peak.difference)])
    columns = [Column("alive at the peak, made by", "key"), Column("", "text"), *_BEFORE_AFTER]
    return Table(f"Why the peak of {run.label} changed", columns, rows, total)


def _layers(run: RunDiff) -> Table:
    folded = _folded([(change.path or "(top)", change.op, change) for change in run.layers])
    rows = [
        Row([Cell(path), Cell(op), Cell(change.kind), *_cells(change)]) for path, op, change in folded[:_ROWS_AT_MOST]
    ]
    rows += _rest(folded, 4)
    total = Row([Cell("change of the total"), *[Cell("")] * 4, _signed(run.saved.difference)])
    columns = [Column("layer", "key"), Column("op", "text"), Column("", "text"), *_BEFORE_AFTER]
    return Table(f"Saved bytes of {run.label}: layers that changed", columns, rows, total)


def _rest(folded: Sequence[tuple[str, str, Change]], empty: int) -> list[Row]:
    """What is not shown one by one, as a last row."""
    rest = folded[_ROWS_AT_MOST:]
    if not rest:
        return []
    cells = [Cell(f"{len(rest)} smaller changes"), *[Cell("")] * empty]
    return [Row([*cells, _signed(sum(change.difference for _, _, change in rest))])]


def _folded(rows: Sequence[tuple[str, str, Change]]) -> list[tuple[str, str, Change]]:
    """Fold rows whose names differ only in numbers into one with their sums."""
    alike: dict[tuple[object, ...], list[tuple[str, str, Change]]] = {}
    for name, op, change in rows:
        key = (_NUMBER.sub("#", name), op, change.before, change.after)
        alike.setdefault(key, []).append((name, op, change))
    folded = []
    for several in alike.values():
        (first, op, change), (last, _, _) = several[0], several[-1]
        name = first if len(several) == 1 else f"{span(first, last)} ({len(several)}×)"
        before, after = (None if size is None else size * len(several) for size in (change.before, change.after))
        folded.append((name, op, Change(name, before, after)))
    return sorted(folded, key=lambda row: -abs(row[2].difference))


def _cells(change: Change) -> list[Cell]:
    sizes = [Cell(tables.NONE if size is None else f"{size:,}") for size in (change.before, change.after)]
    return [*sizes, _signed(change.difference)]


def _signed(difference: int) -> Cell:
    if not difference:
        return Cell("0", "faint")
    return Cell(f"{difference:+,}", "bad" if difference > 0 else "good")


def _percent(change: Change) -> str:
    if not change.difference:
        return "0.00 %"
    if not change.before:
        return "from nothing"
    return f"{100 * change.difference / change.before:+.2f} %"


def _mark(change: Change) -> Any:
    return "bad" if change.difference > 0 else "good" if change.difference < 0 else "faint"


def _blame(run: RunDiff, peak: bool) -> str:
    """The changes that did the most, for a message."""
    changes: Sequence[tuple[str, str, Change]]
    if peak:
        changes = [(change.name, "", change) for change in run.alive or run.parts]
    else:
        changes = [(layer.path or "(top)", layer.op, layer) for layer in run.layers]
    worst = [row for row in _folded(changes) if row[2].difference > 0][:3]
    named = "; ".join(f"{f'{name} {op}'.strip()} {change.difference:+,} B" for name, op, change in worst)
    return f" ({named})" if named else ""
