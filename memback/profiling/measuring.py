"""Measurements of a step, and their instruments, each an observer of one quantity."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from memback.engine.node import Edge, Node
from memback.engine.observer import Call, Observer
from memback.engine.op import Op
from memback.profiling.accounts import Interval
from memback.profiling.ledger import Ledger
from memback.units import format_bytes

__all__ = [
    "AtEveryInterval",
    "Bookkeeping",
    "Observation",
    "Peak",
    "PhaseClock",
    "Prediction",
    "RssSampler",
    "Seconds",
    "TracedPeaks",
    "made_of",
    "median",
]


@dataclass(frozen=True)
class Seconds:
    """Time of one step in seconds: forward, backward without recomputation, and recomputation."""

    forward: float
    backward: float
    recompute: float


@dataclass(frozen=True)
class Peak:
    """The largest number of live bytes, in which interval, and what it is made of (the parts sum to it)."""

    bytes: int
    interval: Interval
    parts: Mapping[str, int]

    def to_dict(self) -> dict[str, int | str]:
        """When it is, and its parts, as plain data."""
        return {"phase": self.interval.phase, "path": self.interval.path, "op": self.interval.op, **self.parts}


def made_of(peak: Mapping[str, Any]) -> str:
    """What a peak, as :meth:`Peak.to_dict` gives it, consists of, in words."""
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in peak.items() if isinstance(size, int) and size)
    return f"{sizes} (in {peak['phase']}, {peak['op']} of layer {peak['path'] or '(top)'!r})"


@dataclass(frozen=True)
class Prediction:
    """The outcome of a dry run: the peak, and the ledger."""

    peak: Peak
    ledger: Ledger


@dataclass(frozen=True)
class Observation:
    """The outcome of a real run under a ledger."""

    ledger: Ledger
    loss: float
    gradient_sha256: str | None
    gradient_bytes: int
    rss_growth: int


class PhaseClock(Observer):
    """Takes the time at which each phase begins; costs next to nothing an op."""

    def __init__(self) -> None:
        self.recompute = 0.0
        self._depth = 0
        self._began = 0.0

    def recompute_begins(self, node: Node) -> None:
        if self._depth == 0:
            self._began = time.perf_counter()
        self._depth += 1

    def recompute_ended(self, node: Node) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.recompute += time.perf_counter() - self._began


class AtEveryInterval(Observer):
    """Calls ``close`` wherever the ledger closes an interval, in the same order."""

    def close(self) -> None:
        """An interval ends."""
        raise NotImplementedError

    def forward_begins(self, op: Op) -> None:
        self.close()

    def forward_ended(self, call: Call) -> None:
        self.close()

    def forward_failed(self) -> None:
        self.close()

    def backward_pass_begins(self) -> None:
        self.close()

    def backward_begins(self, node: Node) -> None:
        self.close()

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        self.close()

    def recompute_begins(self, node: Node) -> None:
        self.close()

    def recompute_ended(self, node: Node) -> None:
        self.close()

    def update_begins(self) -> None:
        self.close()

    def update_ended(self) -> None:
        self.close()

    def finish(self) -> None:
        """The step is over."""
        self.close()


class TracedPeaks(AtEveryInterval):
    """``tracemalloc``'s peak in every interval, written into memory that was there before."""

    def __init__(self, intervals: int) -> None:
        self.peaks = np.zeros(intervals, np.int64)
        self._next = 0

    def close(self) -> None:
        self.peaks[self._next] = tracemalloc.get_traced_memory()[1]
        self._next += 1
        tracemalloc.reset_peak()


class Bookkeeping(AtEveryInterval):
    """Bytes of Python's own objects (everything traced that is not array data) at the end of one interval."""

    def __init__(self, interval: int) -> None:
        self._left = interval
        self.bytes = 0

    def close(self) -> None:
        if self._left == 0:
            self.bytes = _traced_objects()
        self._left -= 1


def _traced_objects() -> int:
    snapshot = tracemalloc.take_snapshot()
    return sum(t.size for t in snapshot.traces if t.domain != np.lib.tracemalloc_domain)


class RssSampler:
    """The growth of the process's resident set while a block runs, looked at every two milliseconds."""

    def __enter__(self) -> RssSampler:
        _give_back_free_memory()
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self._look()

    def _look(self) -> None:
        self._highest = max(self._highest, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._look()
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        """Bytes."""
        return self._highest - self._before


def _give_back_free_memory() -> None:
    """Where the C library can, return freed pages to the system, so that earlier runs do not hide a run's growth."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            return


def median(times: Sequence[Seconds]) -> Seconds:
    """The median of each phase."""
    return Seconds(*(statistics.median(getattr(t, f) for t in times) for f in ("forward", "backward", "recompute")))
