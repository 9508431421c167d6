"""On Dask's own cluster of two workers on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from memback.commands import main
from memback.sweeps import run
from tests.sweeps.small import grid, numbers, rows_of

distributed = pytest.importorskip("distributed", reason="needs the extra sweep")

ONE = grid("batch=1,2,3,4,5,6", "policy=none,sqrt", "budget=1KiB,1MiB")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs="CRITICAL"
    ) as local:
        yield local


@pytest.fixture(scope="module")
def alone():
    return rows_of(ONE)


def rows_on(cluster):
    groups = run.on_dask(ONE.profile, ONE.points, cluster.scheduler_address)
    return sorted((row for rows in groups for row in rows), key=lambda row: row.point)


def test_rows_are_those_of_each_point_alone(cluster, alone):
    assert rows_on(cluster) == alone


def test_the_command_runs_on_a_cluster_and_writes_the_same_file(cluster, tmp_path):
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    command = ["sweep", "digits", "--grid", "batch=1,2,3", "--grid", "policy=none,sqrt", "--quiet"]
    assert main([*command, "--scheduler", cluster.scheduler_address, "-o", str(there)]) == 0
    assert main([*command, "--workers", "1", "-o", str(here)]) == 0
    assert here.read_text() == there.read_text()


def test_a_worker_that_is_killed_midway_loses_nothing_and_nothing_is_there_twice(cluster, alone):
    pids = [worker.pid for worker in cluster.workers.values()]
    groups = run.on_dask(ONE.profile, ONE.points, cluster.scheduler_address)
    rows = list(next(groups))
    os.kill(pids[0], signal.SIGKILL)
    for some in groups:
        rows += some
    assert sorted(numbers(rows)) == [point.number for point in ONE.points]
    assert sorted(rows, key=lambda row: row.point) == alone


def test_no_scheduler_is_one_message(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "CONNECT_SECONDS", 1)
    file = tmp_path / "sweep.csv"
    assert main(["sweep", "digits", "--grid", "batch=1,2", "--scheduler", "tcp://127.0.0.1:1", "-o", str(file)]) == 2
    assert "--scheduler tcp://127.0.0.1:1: no Dask scheduler answers there" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize("address", ["foo", "xyz://127.0.0.1:1", "127.0.0.1:8786", "tcp://host"])
def test_what_is_no_address_is_one_message(address, capsys):
    assert main(["sweep", "digits", "--grid", "batch=1,2", "--scheduler", address]) == 2
    assert f"--scheduler '{address}' is no address; write it as tcp://host:8786" in capsys.readouterr().err
