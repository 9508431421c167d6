"""Processes that run points as memback's do, but for one that they kill themselves at."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from memback.sweeps import children, point
from memback.sweeps.point import Done, Task

ROOT = str(Path(__file__).parents[2])


def command(what: str) -> str:
    """In place of ``children.COMMAND``: always, once (a file remembers it), or of another version."""
    return f"import sys; sys.path.append({ROOT!r}); from tests.sweeps import dying; dying.main({what!r})"


def main(what: str) -> None:
    run = point.run

    def dying(task: Task) -> Done:
        if what == "version":
            return run(Task(task.profile, task.points, version="0.0.1"))
        if any(one.settings["batch"] == 3 for one in task.points) and (what == "always" or first()):
            os.kill(os.getpid(), signal.SIGKILL)
        return run(task)

    point.run = dying
    children.main()


def first() -> bool:
    try:
        Path(os.environ["MEMBACK_TEST_DIED"]).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
