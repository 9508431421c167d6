from __future__ import annotations

import csv
import errno
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memback.errors import MembackError, UsageError
from memback.sweeps import store as stores
from memback.sweeps.point import failed
from memback.sweeps.store import Store, columns, describe
from tests.sweeps.small import grid, numbers, rows_of

GRID = grid("batch=2,4", "policy=none,sqrt", budget=180_000)


@pytest.fixture(scope="module")
def rows():
    return rows_of(GRID)


@pytest.fixture(params=[".csv", ".parquet"])
def file(request, tmp_path):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="needs the extra sweep")
    return str(tmp_path / f"sweep{request.param}")


def read(file):
    """What is in a file, by another reader than memback's own where there is one."""
    if file.endswith(".csv"):
        with open(file, newline="") as lines:
            return list(csv.DictReader(lines))
    import pyarrow.parquet

    return pyarrow.parquet.read_table(file).to_pylist()


def journal(file):
    return Path(f"{file}.journal")


def test_a_row_has_a_column_for_each_setting_and_each_number(rows):
    flat = columns(rows[0])
    assert list(flat)[:4] == ["point", "batch", "policy", "id"]
    assert flat["full_saved_bytes"] == rows[0].full.saved_bytes
    assert flat["checkpoint_policy"] == "none"
    assert flat["plan_budget_bytes"] == 180_000
    assert flat["parameter_bytes"] == rows[0].arguments.parameter_bytes
    assert list(columns(failed(GRID.points[0], "no"))) == list(flat)


def test_what_is_written_is_read_back_the_same(rows, file):
    rows = [*rows[:2], failed(GRID.points[2], 'width, "heads"\nand more'), rows[3]]
    store = Store(GRID, [file])
    store.add(rows)
    store.close()
    expected = [*rows[:2], rows[3]]
    again = Store(GRID, [file], resume=True).ordered
    assert [row for row in again if row.status == "done"] == expected
    assert [row.status for row in again] == ["done", "done", "failed", "done"]


def test_a_parquet_file_has_numbers_as_numbers_and_says_of_what_sweep_it_is(rows, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra sweep")
    file = str(tmp_path / "sweep.parquet")
    store = Store(GRID, [file])
    store.add(rows)
    store.close()
    table = parquet.read_table(file)
    assert str(table.schema.field("batch").type) == "int64"
    assert str(table.schema.field("full_peak_bytes").type) == "int64"
    assert str(table.schema.field("plan_fits").type) == "bool"
    assert str(table.schema.field("policy").type) == "string"
    assert msgspec.json.decode(table.schema.metadata[b"memback"]) == describe(GRID)


def test_rows_are_in_the_files_as_they_come_and_in_order_at_the_end(rows, file, monkeypatch):
    monkeypatch.setattr(stores, "_SECONDS", 0)
    monkeypatch.setattr(stores, "_SHARE", 0)
    store = Store(GRID, [file])
    for count, number in enumerate((3, 0, 2, 1), start=1):
        store.add([rows[number]])
        assert len(read(file)) == count
        assert len(journal(file).read_bytes().splitlines()) == count + 1
    store.close()
    assert [int(row["point"]) for row in read(file)] == [0, 1, 2, 3]
    assert not journal(file).exists()


def test_a_point_has_one_row_whatever_comes_again(rows, file):
    store = Store(GRID, [file])
    store.add(rows[:2])
    store.add([failed(GRID.points[0], "too late"), rows[1]])
    assert store.ordered == rows[:2]


def test_a_lost_point_is_run_again_and_its_row_replaced(rows, file):
    store = Store(GRID, [file])
    store.add([rows[0], failed(GRID.points[1], "killed", "lost")])
    store.close()
    again = Store(GRID, [file], resume=True)
    assert numbers(again.ordered) == [0]
    again.add(rows[1:])
    again.close()
    assert [row["status"] for row in read(file)] == ["done"] * 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_a_kill_at_any_byte_of_the_journal_loses_at_most_the_row_that_was_being_written(data, rows, tmp_path):
    file = str(tmp_path / "sweep.csv")
    store = Store(GRID, [file], force=True)
    store.add(rows[:1])
    store.add(rows[1:3])
    Path(file).unlink()  # as if the kill had been before it was written first
    content = journal(file).read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    journal(file).write_bytes(content[:cut])
    again = Store(GRID, [file], resume=True)
    whole = content[:cut].count(b"\n")
    assert again.ordered == rows[: max(0, whole - 1)]
    again.add([row for row in rows if row.point not in again.rows])
    assert len(journal(file).read_bytes().splitlines()) == 5
    again.close()
    assert Store(GRID, [file], resume=True).ordered == rows


def test_the_journal_and_the_file_are_read_together(rows, file):
    store = Store(GRID, [file])
    store.add(rows[:1])  # which writes the file
    store.add(rows[1:])  # which does not yet
    assert len(read(file)) == 1
    assert Store(GRID, [file], resume=True).ordered == rows


def test_a_grid_with_more_values_goes_on_with_what_a_smaller_one_has(rows, file):
    store = Store(GRID, [file])
    store.add(rows)
    store.close()
    more = grid("batch=2,3,4", "policy=none,sqrt", budget=180_000)
    again = Store(more, [file], resume=True)
    assert numbers(again.ordered) == [0, 1, 4, 5]
    assert [row.settings for row in again.ordered] == [row.settings for row in rows]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (grid("batch=2,5", "policy=none,sqrt", budget=180_000), "its point batch=4, policy=none is not in this grid"),
        (grid("batch=2,4", "dtype=float32", budget=180_000), "its grid is not over batch, dtype"),
        (grid("batch=2,4", "policy=none,sqrt"), "its profile, policy, budget, planner or version of memback"),
    ],
)
@pytest.mark.parametrize(
    ("file", "only_journal"), [(".csv", False), (".csv", True), (".parquet", False)], indirect=["file"]
)
def test_rows_of_another_sweep_are_refused_with_the_reason(other, reason, only_journal, rows, file):
    store = Store(GRID, [file])
    store.add(rows)
    if only_journal:
        Path(file).unlink()
    else:
        store.close()
    with pytest.raises(UsageError) as refused:
        Store(other, [file], resume=True)
    assert "has rows of another sweep" in str(refused.value)
    assert reason in str(refused.value)
    assert "--force" in str(refused.value)


def test_what_is_there_is_left_alone_without_a_word(rows, file):
    Path(file).write_text("mine")
    with pytest.raises(UsageError, match=r"will not overwrite without --force: .*; --resume continues its sweep"):
        Store(GRID, [file])
    Path(file).unlink()
    journal(file).write_text("{}\n")
    with pytest.raises(UsageError, match="has rows of an interrupted sweep: --resume continues it"):
        Store(GRID, [file])
    assert journal(file).read_text() == "{}\n"
    store = Store(GRID, [file], force=True)
    store.add(rows)
    store.close()
    assert len(read(file)) == 4


@pytest.mark.parametrize(
    ("content", "file"),
    [
        (b"mine", ".csv"),
        (b"mine", ".parquet"),
        (b"\xff\xfe\x00", ".csv"),
        (b"point,id\n0,x\n", ".csv"),
        (b"point,,id\n0,,x,1,2\n", ".csv"),
    ],
    indirect=["file"],
)
def test_a_file_that_is_no_sweeps_is_refused_and_left_alone(content, file):
    Path(file).write_bytes(content)
    with pytest.raises(UsageError, match=r"can't be read as|rows of another sweep|has no rows of a sweep"):
        Store(GRID, [file], resume=True)
    assert Path(file).read_bytes() == content


def test_a_changed_number_is_refused(rows, tmp_path):
    file = str(tmp_path / "sweep.csv")
    store = Store(GRID, [file])
    store.add(rows)
    store.close()
    Path(file).write_text(Path(file).read_text().replace(",done,", ",dome,", 1))
    with pytest.raises(UsageError, match="has been changed: Invalid enum value 'dome'"):
        Store(GRID, [file], resume=True)


def test_a_full_disk_leaves_the_file_as_it_was_and_the_journal(rows, file, monkeypatch):
    store = Store(GRID, [file])
    store.add(rows[:2])
    before = Path(file).read_bytes()
    store.add(rows[2:])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MembackError, match="no space left on device; free some space"):
        store.close()
    assert Path(file).read_bytes() == before
    monkeypatch.undo()
    assert Store(GRID, [file], resume=True).ordered == rows
    assert sorted(path.name for path in Path(file).parent.iterdir()) == [Path(file).name, journal(file).name]


def test_where_nothing_came_nothing_is_written(file):
    Store(GRID, [file]).close()
    assert not Path(file).exists()
    assert not journal(file).exists()


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"let its name end in \.parquet or \.csv"):
        Store(GRID, [str(tmp_path / "sweep.xlsx")])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"pip install 'pyarrow>=22', or write \.csv"):
        Store(GRID, [str(tmp_path / "sweep.parquet")])
