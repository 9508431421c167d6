"""Keeping a process's threads on a core each.

A system that packs what is ready to run onto as few cores as it can puts a product's two threads onto one, where each
waits for the other: which engine that hits, and when, is chance.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

__all__ = ["pin", "pinned"]


def pin(threads: int) -> bool:
    """Pin the busiest threads of this process to a core each; False where the system has no call for it."""
    if not hasattr(os, "sched_setaffinity"):
        return False
    busiest = sorted(psutil.Process().threads(), key=lambda t: t.user_time + t.system_time, reverse=True)
    cores = sorted(os.sched_getaffinity(0))
    for i, thread in enumerate(busiest[:threads]):
        os.sched_setaffinity(thread.id, {cores[i % len(cores)]})
    return True


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """As :func:`pin` in the block; afterwards all threads run where the first one did before."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    pin(threads)
    try:
        yield
    finally:
        if cores:
            for thread in psutil.Process().threads():
                os.sched_setaffinity(thread.id, cores)
