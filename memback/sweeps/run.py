"""Where a sweep's points are run: on all cores of this machine, or on a Dask cluster.

Each is a function from points to their rows, as they come. Whatever process dies, every point has exactly one row in
the end: what a dead process had not given back is run again.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

from memback.errors import MembackError, UsageError
from memback.extras import how_to_install
from memback.profiling.definition import Profile
from memback.sweeps import point as work
from memback.sweeps.children import Children
from memback.sweeps.grid import Point
from memback.sweeps.point import Done, Row, Task

__all__ = ["cores", "on_cores", "on_dask", "tasks_of"]

CONNECT_SECONDS = 10
"""Seconds that a scheduler may take to answer."""

_ADDRESS = re.compile(r"(?:tcp|tls|ws|wss|ucx)://\S+:\d+/?")

_AT_ONCE = 500
"""Tasks that a cluster gets at a time."""

_SHARES = 4
"""A task is at most this part of what a process has to do, where all is of one model."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tasks_of(profile: Profile, points: Iterable[Point], workers: int) -> list[Task]:
    """Points in tasks: those of one model together, as they share most of the work, but enough tasks for all workers.

    Those with one budget stay together longest, as they share its plan.
    """
    models: dict[Any, list[Point]] = {}
    for point in points:
        models.setdefault(point.overrides, []).append(point)
    most = max(4, math.ceil(sum(map(len, models.values())) / (_SHARES * workers)))
    ordered = (sorted(same, key=lambda point: (point.budget or 0, point.planner)) for same in models.values())
    parts = (same[i : i + most] for same in ordered for i in range(0, len(same), most))
    return [Task(profile, tuple(part)) for part in parts]


def _rest(task: Task, done: Done) -> list[Task]:
    return [Task(task.profile, done.rest, task.version)] if done.rest else []


# -- on this machine's cores


def on_cores(profile: Profile, points: Sequence[Point], workers: int) -> Iterator[list[Row]]:
    """Run points in ``workers`` processes, or in this one where one is enough.

    Raises:
        MembackError: a process is of another version of memback.
    """
    tasks = tasks_of(profile, points, workers)
    if workers == 1 or len(tasks) == 1:
        yield from _here(tasks)
        return
    children = Children()
    finished: SimpleQueue[Future[Done]] = SimpleQueue()
    with ThreadPoolExecutor(min(workers, len(tasks)) or 1) as pool:
        running: dict[Future[Done], Task] = {}

        def submit(task: Task) -> None:
            future = pool.submit(children.run, task)
            running[future] = task
            future.add_done_callback(finished.put)

        try:
            for task in tasks:
                submit(task)
            while running:
                future = finished.get()
                task, done = running.pop(future), future.result()
                for later in _rest(task, done):
                    submit(later)
                yield done.rows
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.close()


def _here(tasks: Iterable[Task]) -> Iterator[list[Row]]:
    """Run tasks in this process."""
    waiting = deque(tasks)
    while waiting:
        task = waiting.popleft()
        done = work.run(task)
        waiting.extendleft(_rest(task, done))
        yield done.rows


# -- on a Dask cluster


def require_dask() -> None:
    """Refuse before any work where Dask is not installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        command = how_to_install("dask", "distributed")
        raise UsageError(f"--scheduler needs Dask, which is not installed: {command}") from None


def on_dask(profile: Profile, points: Sequence[Point], address: str) -> Iterator[list[Row]]:
    """Run points on the cluster whose scheduler is at ``address``; where a worker dies, Dask has another one run them.

    Raises:
        UsageError: no scheduler answers there, or its workers have no memback, or another version.
        MembackError: the connection to it is lost.
    """
    require_dask()
    from distributed import as_completed

    with _client(address) as client:
        threads = sum(client.nthreads().values())
        waiting = deque(tasks_of(profile, points, max(threads, 1)))
        running: dict[Any, Task] = {}
        completed = as_completed(loop=client.loop, raise_errors=False)

        def submit() -> None:
            """Keep enough tasks on the cluster."""
            while waiting and len(running) < max(_AT_ONCE, 4 * threads):
                task = waiting.popleft()
                future = client.submit(_run_on_worker, task, pure=False)
                running[future] = task
                completed.add(future)

        try:
            submit()
            for future in completed:
                task = running.pop(future)
                rows, rest = _outcome(future, task)
                waiting.extendleft(rest)
                submit()
                future.release()
                yield rows
        finally:
            if client.status == "running":
                client.cancel(list(running))
                client.run(_rest_on_worker, on_error="ignore")


@contextmanager
def _client(address: str) -> Iterator[Any]:
    from distributed import Client

    if not _ADDRESS.fullmatch(address):
        raise UsageError(f"--scheduler {address!r} is no address; write it as tcp://host:8786")
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # one message here in place of Dask's pages about a lost connection
    try:
        try:
            client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except OSError as error:
            raise UsageError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error
        with client:
            yield client
    finally:
        logging.disable(before)


_on_worker = Children()


def _run_on_worker(task: Task) -> Done:
    """What Dask runs: a task, in a child process of the worker."""
    return _on_worker.run(task)


def _rest_on_worker() -> None:
    _on_worker.rest()


def _outcome(future: Any, task: Task) -> tuple[list[Row], list[Task]]:
    """The outcome of a task: its rows, and the rest of it."""
    from distributed import KilledWorker

    if future.status == "finished":
        done: Done = future.result()
        return done.rows, _rest(task, done)
    error = future.exception() if future.status == "error" else None
    match error:
        case KilledWorker():
            why = "every worker that ran it died"
            return [work.failed(point, why, "lost") for point in task.points], []
        case ModuleNotFoundError():
            raise UsageError(f"the workers of the cluster have no {error.name}: install this memback there") from error
        case None:
            raise MembackError("the connection to the Dask scheduler is lost")
        case _:
            raise error
