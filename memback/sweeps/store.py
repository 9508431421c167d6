"""Rows of a sweep on disk: nothing that is finished is lost, and no file is ever half-written.

Every row is first appended to a journal next to the file (``FILE.journal``, a JSON document a line, the sweep's own
first). Every few seconds, and at the end, the file itself is rewritten under a temporary name and renamed. A kill at
any moment leaves a whole file, or none yet, and a journal with at most its last line cut off: :meth:`Store.resumed`
reads both. An orderly end leaves the file alone.
"""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from memback._version import __version__
from memback.errors import UsageError, shorten
from memback.extras import how_to_install
from memback.files import check_target, explained, read_regular, write_atomically
from memback.reports.tables import cell_text, text_of_cell
from memback.sweeps import parquet
from memback.sweeps.grid import Grid, Point, settings_text
from memback.sweeps.point import Arguments, Figures, PlanFigures, Row

__all__ = ["SCHEMA", "SUFFIXES", "Store", "columns", "describe"]

SCHEMA = "memback.sweep/1"
SUFFIXES = (".parquet", ".csv")

_PARTS: dict[str, type[msgspec.Struct]] = {
    "arguments": Arguments,
    "full": Figures,
    "checkpoint": Figures,
    "inference": Figures,
    "plan": PlanFigures,
}
_SECONDS = 5.0
_SHARE = 20
"""A file is rewritten after this many times the duration of the last write."""


def describe(grid: Grid) -> dict[str, Any]:
    """A sweep as plain data: what its rows are of."""
    return {
        "schema": SCHEMA,
        "memback": __version__,
        "profile": grid.profile.name,
        "sha256": grid.profile.sha256,
        "grid": [{"key": axis.key, "values": [value.shown for value in axis.values]} for axis in grid.axes],
        "budget_bytes": grid.budget,
        "planner": grid.planner if grid.has_plans else None,
    }


# -- a row as columns


def columns(row: Row) -> dict[str, Any]:
    """A row as it stands in a table: its settings, then what it is, then the parts' fields, as ``full_peak_bytes``.

    The arguments' fields have no prefix. What there is not is None.
    """
    flat: dict[str, Any] = {"point": row.point, **row.settings, "id": row.id, "status": row.status, "error": row.error}
    flat["checkpoint_policy"] = row.policy
    for part, struct in _PARTS.items():
        value = getattr(row, part)
        for name in struct.__struct_fields__:
            flat[_column(part, name)] = None if value is None else getattr(value, name)
    return flat


def _column(part: str, name: str) -> str:
    return name if part == "arguments" else f"{part}_{name}"


def _row(flat: Mapping[str, Any], settings: dict[str, Any]) -> Row:
    """What :func:`columns` made a row of; texts are read as what they stand for, and an empty one as None."""

    def known(name: str) -> Any:
        value = flat.get(name)
        return None if value == "" else value

    content: dict[str, Any] = {name: known(name) for name in ("point", "id", "status", "error")}
    content |= {"policy": known("checkpoint_policy"), "settings": settings}
    for part, struct in _PARTS.items():
        fields = {name: known(_column(part, name)) for name in struct.__struct_fields__}
        content[part] = fields if any(value is not None for value in fields.values()) else None
        if content[part] and "peak_path" in fields:
            fields["peak_path"] = fields["peak_path"] or ""
    return msgspec.convert(content, Row, strict=False)


# -- formats


def _to_csv(rows: Sequence[Row], grid: Grid) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_names(grid))
    writer.writerows([_cell(value) for value in columns(row).values()] for row in rows)
    return file.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return cell_text(value) if isinstance(value, str) else value


def _from_csv(path: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(_read(path).decode(), newline=""))
        names = reader.fieldnames or ()
        return names, [{name: text_of_cell(row[name] or "") for name in names} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} can't be read as CSV: {shorten(error)}") from None


def _read(path: Path) -> bytes:
    """The content of a file.

    Raises:
        UsageError: it can't be read, or is none that could be a sweep's.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None


def _names(grid: Grid) -> list[str]:
    return list(columns(Row(point=0, id="", settings={axis.key: None for axis in grid.axes}, status="done")))


def _to_parquet(rows: Sequence[Row], grid: Grid) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(list(_types(grid).items()), {"memback": msgspec.json.encode(describe(grid))})
    file = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(map(columns, rows)), schema), file, write_page_checksum=True)
    content: bytes = file.getvalue().to_pybytes()
    return content


def _types(grid: Grid) -> dict[str, Any]:
    """Every column's type."""
    import pyarrow as pa

    types = dict.fromkeys(_names(grid), pa.string())
    types["point"] = pa.int64()
    for part, struct in _PARTS.items():
        for field in msgspec.structs.fields(struct):
            kind = str(field.type)
            if field.type is bool:
                types[_column(part, field.name)] = pa.bool_()
            elif "int" in kind:
                types[_column(part, field.name)] = pa.int64()
    for axis in grid.axes:
        kinds = {type(value.shown) for value in axis.values}
        kinds = {float} if kinds == {int, float} else kinds
        found = {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
        types[axis.key] = found.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()
    return types


_WRITERS: dict[str, Callable[[Sequence[Row], Grid], bytes]] = {".parquet": _to_parquet, ".csv": _to_csv}
_READERS: dict[str, Callable[[Path], tuple[Sequence[str], list[dict[str, Any]]]]] = {
    ".parquet": lambda path: parquet.read(_read(path), path),
    ".csv": _from_csv,
}
"""By suffix: the columns' names, and the rows."""


def _suffix(file: str) -> str:
    return Path(file).suffix.lower()


# -- the store


class Store:
    """The rows of a sweep, in memory and on disk.

    Args:
        grid: the sweep.
        files: where the rows go, by suffix (one of :data:`SUFFIXES`); the first one has the journal. None: nowhere.
        force: overwrite what is there.
        resume: go on with what is there.

    Attributes:
        rows: by the point's number.

    Raises:
        UsageError: a file can't be written, what it needs is not installed, it is there (without ``force`` or
            ``resume``), or it is there (with ``resume``) and has rows of another sweep.
    """

    def __init__(self, grid: Grid, files: Sequence[str], force: bool = False, resume: bool = False) -> None:
        self.grid = grid
        self.files = tuple(files)
        self.rows: dict[int, Row] = {}
        self._journal = Path(f"{files[0]}.journal") if files else None
        self._began = False
        self._next_write = 0.0
        for file in files:
            _require(file)
            check_target(file, overwrite=True)
        if self._journal is not None:
            check_target(self._journal, overwrite=True)
        if resume and files:
            self._resume()
        elif not force:
            self._check_new()

    def _check_new(self) -> None:
        for file in self.files:
            if Path(file).exists():
                raise UsageError(
                    f"File already exists, will not overwrite without --force: {file}; --resume continues its sweep"
                )
        if self._journal is not None and self._journal.exists():
            raise UsageError(
                f"{self._journal} has rows of an interrupted sweep: --resume continues it, --force starts over"
            )

    # -- adding rows

    def add(self, rows: Iterable[Row]) -> None:
        """Keep rows; a point that has one already keeps that.

        Raises:
            MembackError: the system does not let them be written.
        """
        known = {number for number, row in self.rows.items() if row.status != "lost"}
        new = {row.point: row for row in rows if row.point not in known}
        self.rows |= new
        if self._journal is None or not new:
            return
        self._append(new.values())
        if time.monotonic() >= self._next_write:
            self.write()

    def _append(self, rows: Iterable[Row]) -> None:
        assert self._journal is not None
        with explained(self._journal), self._journal.open("ab" if self._began else "wb") as file:
            if not self._began:
                file.write(msgspec.json.encode(describe(self.grid)) + b"\n")
            file.write(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self._began = True

    def write(self) -> None:
        """Rewrite every file with the rows so far, in the order of the points.

        Raises:
            MembackError: the system does not let it be written.
        """
        began = time.monotonic()
        rows = self.ordered
        for file in self.files:
            write_atomically(file, _WRITERS[_suffix(file)](rows, self.grid), overwrite=True)
        now = time.monotonic()
        self._next_write = now + max(_SECONDS, _SHARE * (now - began))

    def close(self) -> None:
        """Write every file, which then has all that the journal has. Without a row, nothing is touched.

        Raises:
            MembackError: the system does not let it be written; the journal stays.
        """
        if not self.rows:
            return
        self.write()
        if self._journal is not None:
            with explained(self._journal):
                self._journal.unlink(missing_ok=True)

    @property
    def ordered(self) -> list[Row]:
        """The rows in the order of the points."""
        return [self.rows[number] for number in sorted(self.rows)]

    # -- going on

    def _resume(self) -> None:
        """Adopt the existing rows, except lost ones."""
        points = {point.id: point for point in self.grid.points}
        taken = [row for file in self.files if Path(file).exists() for row in self._from_file(file, points)]
        taken += self._from_journal(points)
        self.rows = {row.point: row for row in taken if row.status != "lost"}

    def _from_file(self, file: str, points: Mapping[str, Point]) -> Iterator[Row]:
        names, rows = _READERS[_suffix(file)](Path(file))
        if names and "id" not in names:
            raise UsageError(f"{file} has no rows of a sweep (no column id); name another file, or use --force")
        for flat in rows:
            point = points.get(str(flat.get("id")))
            if point is None:
                settings = {axis.key: flat[axis.key] for axis in self.grid.axes if axis.key in flat}
                raise self._foreign(file, settings)
            try:
                yield _row({**flat, "point": point.number}, point.settings)
            except msgspec.ValidationError as error:
                raise UsageError(
                    f"{file}: point {flat['id']} has been changed: {shorten(error)}; --force starts over"
                ) from None

    def _from_journal(self, points: Mapping[str, Any]) -> list[Row]:
        """The journal's rows, but for a last one that was cut off. What is appended goes behind the last whole one."""
        assert self._journal is not None
        if not self._journal.exists():
            return []
        whole, _, _ = _read(self._journal).rpartition(b"\n")
        if not whole:
            return []
        try:
            rows = [msgspec.json.decode(line, type=Row) for line in whole.split(b"\n")[1:]]
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise UsageError(
                f"{self._journal} is no journal of a sweep: {shorten(error)}; --force starts over"
            ) from None
        for row in rows:
            if row.id not in points:
                raise self._foreign(str(self._journal), row.settings)
        write_atomically(self._journal, whole + b"\n", overwrite=True)
        self._began = True
        return [msgspec.structs.replace(row, point=points[row.id].number) for row in rows]

    def _foreign(self, file: str, settings: dict[str, Any]) -> UsageError:
        """A row is none of this sweep's, and why."""
        keys = [axis.key for axis in self.grid.axes]
        shown = {axis.key: {_shown(value.shown) for value in axis.values} for axis in self.grid.axes}
        if set(settings) != set(keys):
            why = f"its grid is not over {', '.join(keys)}"
        elif all(_shown(value) in shown[key] for key, value in settings.items()):
            why = f"its profile, policy, budget, planner or version of memback ({__version__} here) is another one"
        else:
            why = f"its point {settings_text(settings)} is not in this grid"
        return UsageError(f"{file} has rows of another sweep: {why}; name another file, or start over with --force")


def _shown(value: Any) -> str:
    return str(_cell(value))


def _require(file: str) -> None:
    if _suffix(file) not in SUFFIXES:
        raise UsageError(f"Rows of a sweep can't be written to {file}; let its name end in {' or '.join(SUFFIXES)}")
    if _suffix(file) == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UsageError(
                f"{file}: Parquet needs pyarrow, which is not installed: {how_to_install('pyarrow')}, or write .csv"
            ) from None
