"""Processes that run points, each of which does nothing else.

Lifetimes decide the numbers of a dry run, and nothing may prolong them: another thread that looks at frames, as a
profiler does (Dask's workers have one each), keeps alive what is in them. So points are run in processes of their own,
which get tasks by a pipe, give back rows by another one, and end when their pipe does.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any

from memback.files import PACKAGE
from memback.sweeps import point as work
from memback.sweeps.point import Done, Task

__all__ = ["COMMAND", "Children", "main"]

_ROOT = str(PACKAGE.parent)
COMMAND = f"import sys; sys.path.append({_ROOT!r}); from memback.sweeps import children; children.main()"
"""What a process runs: the memback that asks, wherever that is."""

_TRIES = 3


class Children:
    """Processes for any number of threads: each that runs a task has one, which the next task gets."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False

    def run(self, task: Task) -> Done:
        """Run a task in another process.

        If that dies (killed for its memory, say), half of the points are tried, and so on. A single one that kills its
        process again and again is lost, with a row that says so; what has not been tried is in the rest.
        """
        points, deaths = task.points, 0
        while True:
            try:
                done = self._run(Task(task.profile, points, task.version))
            except _DiedError:
                if len(points) > 1:
                    points = points[: len(points) // 2]
                    continue
                deaths += 1
                if deaths < _TRIES:
                    continue
                why = f"the process that ran it died {_TRIES} times, perhaps out of memory"
                done = Done([work.failed(points[0], why, "lost")])
            return Done(done.rows, (*done.rest, *task.points[len(points) :]))

    def _run(self, task: Task) -> Done:
        with self._lock:
            if self._closed:
                raise RuntimeError("no more tasks are run")
            child = self._idle.pop() if self._idle else _Child()
            self._busy.add(child)
        try:
            done = child.run(task)
        except _DiedError:
            with self._lock:
                self._busy.discard(child)
            raise
        with self._lock:
            self._busy.discard(child)
            self._idle.append(child)
        return done

    def close(self) -> None:
        """End all processes, those that are running a task too; afterwards none is started."""
        with self._lock:
            self._closed = True
            every, self._idle = [*self._idle, *self._busy], []
        for child in every:
            child.end()

    def rest(self) -> None:
        """End the processes that have nothing to do."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()


class _DiedError(Exception):
    """The process is gone."""


class _Child:
    """A process, and the pipes to it."""

    def __init__(self) -> None:
        # outside the terminal's group, so that only the process that started it gets Ctrl-C
        group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        apart: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {"creationflags": group}
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **apart
        )

    def run(self, task: Task) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, task)
            answer = _receive(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            self.end()
            raise _DiedError from None
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, Done)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError, ValueError):
                    pipe.close()


def _send(pipe: IO[bytes], content: object) -> None:
    pickle.dump(content, pipe)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> object:
    return pickle.load(pipe)


def main() -> None:
    """Run tasks from standard input until it ends; what prints goes to standard error."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(EOFError, pickle.UnpicklingError, BrokenPipeError):  # the process that asked is gone
        while True:
            task = _receive(sys.stdin.buffer)
            assert isinstance(task, Task)
            answer: object
            try:
                answer = work.run(task)
            except Exception as error:
                answer = error
            _send(answers, answer)
    os._exit(0)  # skip the last attempt to write to a pipe without a reader
