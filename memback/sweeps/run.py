"""Where a sweep's points are run: in this process, on all cores of this machine, or on a Dask cluster.

Each is a function from points to their rows, as they come. Whatever process dies, every point has exactly
one row in the end: what a dead process had not given back is run again, and a point whose process dies again and again
is lost, with a row that says so.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeAlias

from memback.errors import MembackError, UsageError
from memback.profiling.definition import Profile
from memback.sweeps import point as work
from memback.sweeps.grid import Point
from memback.sweeps.point import Done, Row, Task

__all__ = ["cores", "on_cores", "on_dask", "tasks_of"]

_TRIES = 3
_AHEAD = 2
"""Tasks that a process has, so that it need not wait for the next one."""
_SHARES = 4
"""A task is at most this part of what a process has to do, where all is of one model."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tasks_of(profile: Profile, points: Iterable[Point], workers: int) -> list[Task]:
    """Points in tasks: those of one model together, as they share most of the work, but enough tasks for everybody."""
    models: dict[Any, list[Point]] = {}
    for point in points:
        models.setdefault(point.overrides, []).append(point)
    most = max(4, math.ceil(sum(map(len, models.values())) / (_SHARES * workers)))
    return [Task(profile, part) for same in models.values() for part in _parts(same, most)]


def _parts(points: Sequence[Point], most: int) -> Iterator[tuple[Point, ...]]:
    return (tuple(points[i : i + most]) for i in range(0, len(points), most))


def _rest(task: Task, done: Done) -> list[Task]:
    return [Task(task.profile, done.rest, task.version)] if done.rest else []


def _here(waiting: deque[Task]) -> Iterator[list[Row]]:
    """Run tasks in this process."""
    while waiting:
        task = waiting.popleft()
        done = work.run(task)
        waiting.extendleft(_rest(task, done))
        yield done.rows


# -- on this machine's cores


def on_cores(profile: Profile, points: Sequence[Point], workers: int) -> Iterator[list[Row]]:
    """Run points in ``workers`` processes, or in this one where one is enough.

    Where a process dies (killed for its memory, say), what was under way is run again, a task at a time, so that
    it is known whose fault it is.
    """
    waiting = deque(tasks_of(profile, points, workers))
    if workers == 1 or len(waiting) == 1:
        yield from _here(waiting)
    while waiting:
        under_way = yield from _pooled(waiting, min(workers, len(waiting)))
        for task in under_way:
            yield from _alone(task)


def _pooled(waiting: deque[Task], workers: int) -> Generator[list[Row], None, list[Task]]:
    """Run what is waiting; where a process dies, those tasks that were under way then are left, and returned."""
    running: dict[Future[Done], Task] = {}
    with _pool(workers) as pool:
        while waiting or running:
            try:
                while waiting and len(running) < _AHEAD * workers:
                    running[pool.submit(work.run, waiting[0])] = waiting[0]
                    waiting.popleft()
                finished = wait(running, return_when=FIRST_COMPLETED).done
                for future in finished:
                    done = future.result()
                    waiting.extendleft(_rest(running.pop(future), done))
                    yield done.rows
            except BrokenProcessPool:
                return list(running.values())
    return []


def _alone(task: Task) -> Iterator[list[Row]]:
    """Run a task point by point in a process of its own; a point that kills it every time is lost."""
    for points in _parts(task.points, 1):
        one = Task(task.profile, points, task.version)
        for _ in range(_TRIES):
            waiting = deque([one])
            if not (yield from _pooled(waiting, 1)) and not waiting:
                break
        else:
            yield [work.failed(points[0], f"the process that ran it died {_TRIES} times; was it out of memory?", "lost")]


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, at once if it is left by an exception, and by themselves if this one dies."""
    context = _context()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    pool.shutdown(cancel_futures=True)


def _context() -> Any:
    """How processes are started: each a copy of one that has memback loaded, where the system has that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__name__])
    return context


def _begin() -> None:
    """In a new process: leave Ctrl-C to the one that started it, and do not outlive that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# -- on a Dask cluster


def require_dask() -> None:
    """Refuse before any work where Dask is not installed.

    Raises:
        UsageError: it is not.
    """
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise UsageError("--scheduler needs Dask, which is not installed: pip install 'memback[sweep]'") from None


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
        running = {_submit(client, task): task for task in tasks_of(profile, points, max(threads, 1))}
        try:
            completed = as_completed(running, raise_errors=False)
            for future in completed:
                task = running.pop(future)
                rows, rest = _outcome(future, task)
                for later in rest:
                    again = _submit(client, later)
                    running[again] = later
                    completed.add(again)
                future.release()
                yield rows
        finally:
            if client.status == "running":
                client.cancel(list(running))


@contextmanager
def _client(address: str) -> Iterator[Any]:
    from distributed import Client

    # what Dask has to say of lost connections is said here, in one message
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        try:
            client = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error
        with client:
            yield client
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _submit(client: Any, task: Task) -> Any:
    return client.submit(work.run, task, pure=False)


def _outcome(future: Any, task: Task) -> tuple[list[Row], list[Task]]:
    """What became of a task: its rows, and what is left of it."""
    from distributed import KilledWorker

    if future.status == "finished":
        done: Done = future.result()
        return done.rows, _rest(task, done)
    error = future.exception() if future.status == "error" else None
    match error:
        case KilledWorker() if len(task.points) > 1:
            return [], [Task(task.profile, part, task.version) for part in _parts(task.points, 1)]
        case KilledWorker():
            return [work.failed(task.points[0], "the workers that ran it died, again and again", "lost")], []
        case ModuleNotFoundError():
            raise UsageError(f"the workers of the cluster have no {error.name}: install memback there") from error
        case None:
            raise MembackError("the connection to the Dask scheduler is lost")
        case _:
            raise error
