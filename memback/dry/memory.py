"""Bytes that a thread holds in arrays without memory."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from memback.engine.arrays import DryArray
from memback.errors import UsageError, shorten

__all__ = [
    "MOST_OF_ONE",
    "DryMemory",
    "dry_memory",
    "for_a_moment",
    "fresh_dry_memory",
    "local",
    "too_large",
]


_MOST = 2**60
"""Bytes at once: more than any memory has, and few enough for sums of some in 64 bits."""


MOST_OF_ONE = 2**56


def too_large(what: str, size: int) -> UsageError:
    """The error for more bytes than there can be."""
    return UsageError(
        f"{what} would take {shorten(f'{size:,}', 60)} B, more than any memory has: make the sizes smaller"
    )


class _Buffer(weakref.ref[Any]):
    """A root buffer, by weak reference, and its bytes."""

    __slots__ = ("nbytes",)

    nbytes: int


class DryMemory:
    """Bytes of the live root buffers that a thread has made without memory, and their highest sum.

    A buffer that dies is put into a list by the interpreter itself, and counted at the next look: an interrupt
    (Ctrl-C) in a function of Python's that is called then would be printed and lost.
    """

    __slots__ = ("_buffers", "_dead", "_live", "peak")

    def __init__(self) -> None:
        self._live = 0
        self._buffers: dict[int, _Buffer] = {}
        self._dead: list[_Buffer] = []
        self.peak = 0

    @property
    def live(self) -> int:
        """Bytes that are live now."""
        if self._dead:
            self._count_dead()
        return self._live

    def _count_dead(self) -> None:
        while self._dead:
            buffer = self._dead.pop()
            del self._buffers[id(buffer)]
            self._live -= buffer.nbytes

    def hold(self, array: DryArray) -> None:
        """A root buffer comes to life, and is counted until it dies."""
        buffer = _Buffer(array, self._dead.append)
        buffer.nbytes = array.nbytes
        self._buffers[id(buffer)] = buffer
        self.allocate(array.nbytes)

    def allocate(self, count: int) -> None:
        """``count`` bytes come to life."""
        if self._dead:
            self._count_dead()
        live = self._live = self._live + count
        if live > self.peak:
            if live > _MOST:
                raise too_large("all arrays together", live)
            self.peak = live

    def free(self, count: int) -> None:
        """``count`` bytes die that were allocated alone."""
        self._live -= count

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        self.peak = self.live


class _Local(threading.local):
    def __init__(self) -> None:
        self.memory = DryMemory()


local = _Local()


def dry_memory() -> DryMemory:
    """The running thread's :class:`DryMemory`."""
    return local.memory


class fresh_dry_memory:
    """In the block the thread counts from nothing: what was made before it, and dies in it, is no part of the count."""

    def __init__(self) -> None:
        self._before: list[DryMemory] = []

    def __enter__(self) -> DryMemory:
        self._before.append(local.memory)
        local.memory = DryMemory()
        return local.memory

    def __exit__(self, *_: object) -> None:
        local.memory = self._before.pop()


def for_a_moment(count: int) -> None:
    """Bytes that a function takes and gives back before it returns."""
    memory = local.memory
    memory.allocate(count)
    memory.free(count)
