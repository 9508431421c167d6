from __future__ import annotations

import os
import sys

import psutil
import pytest

from memback.errors import MembackError, UsageError
from memback.profiling.definition import load
from memback.sweeps import children, point, run
from tests.sweeps import dying
from tests.sweeps.small import grid, numbers, rows_of

PROFILE = load("digits")


def rows_from(groups):
    return sorted((row for rows in groups for row in rows), key=lambda row: row.point)


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_are_those_of_each_point_alone_wherever_they_are_run(workers):
    one = grid("batch=1,2,4", "policy=none,sqrt", "budget=1KiB,1MiB")
    assert rows_from(run.on_cores(PROFILE, one.points, workers)) == rows_of(one)


def test_points_of_one_model_are_one_task_but_for_having_enough_tasks():
    many = grid("batch=1,2,3,4", "policy=none,sqrt", "budget=1KiB,1MiB")
    tasks = run.tasks_of(PROFILE, many.points, workers=1)
    assert [len(task.points) for task in tasks] == [4] * 4
    assert all(len({one.overrides for one in task.points}) == 1 for task in tasks)
    alike = grid(f"budget={','.join(map(str, range(1, 65)))}")
    assert [len(task.points) for task in run.tasks_of(PROFILE, alike.points, workers=2)] == [8] * 8


def test_what_is_left_of_a_task_is_run_too(monkeypatch):
    whole = point.run
    monkeypatch.setattr(point, "run", lambda task: whole(task, seconds=0))
    one = grid("policy=none,sqrt,all,selective")
    assert numbers(rows_from(run.on_cores(PROFILE, one.points, 1))) == [0, 1, 2, 3]


needs_kill = pytest.mark.skipif(os.name != "posix", reason="kills processes as POSIX systems do")


@needs_kill
def test_a_killed_process_loses_nothing_and_nothing_is_there_twice(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMBACK_TEST_DIED", str(tmp_path / "died"))
    monkeypatch.setattr(children, "COMMAND", dying.command("once"))
    one = grid("batch=1,2,3,4,5,6", "policy=none,sqrt")
    rows = rows_from(run.on_cores(PROFILE, one.points, 2))
    assert (tmp_path / "died").exists()
    assert numbers(rows) == list(range(12))
    assert {row.status for row in rows} == {"done"}


@needs_kill
def test_a_point_that_kills_its_process_every_time_is_lost_and_no_other_one(monkeypatch):
    monkeypatch.setattr(children, "COMMAND", dying.command("always"))
    one = grid("batch=1,2,3,4,5", "policy=none,sqrt")
    rows = rows_from(run.on_cores(PROFILE, one.points, 2))
    assert numbers(rows) == list(range(10))
    assert [row.point for row in rows if row.status == "lost"] == [4, 5]
    assert {row.status for row in rows if row.settings["batch"] != 3} == {"done"}
    assert "the process that ran it died 3 times" in rows[4].error


def test_processes_end_with_who_wants_no_more_rows():
    before = set(psutil.Process().children())
    rows = run.on_cores(PROFILE, grid("batch=1,2,3,4,5,6,7,8").points, 2)
    next(rows)
    started = set(psutil.Process().children()) - before
    assert len(started) == 2
    rows.close()
    assert not any(process.is_running() for process in started)


def test_without_dask_a_scheduler_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"--scheduler needs Dask, .*: pip install 'dask>=2026\.1' 'distributed>="):
        list(run.on_dask(PROFILE, grid("batch=1").points, "tcp://127.0.0.1:1"))


def test_another_version_of_memback_ends_the_sweep(monkeypatch):
    monkeypatch.setattr(children, "COMMAND", dying.command("version"))
    with pytest.raises(MembackError, match="install the same version everywhere"):
        list(run.on_cores(PROFILE, grid("batch=1,2").points, 2))
