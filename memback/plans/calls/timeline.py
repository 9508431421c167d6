"""What a choice of calls to recompute takes: the one judge of plans over recorded calls.

A value that is kept lives from its birth until backward, or what is recomputed from it, has needed it for the last
time. One that is not lives as long as the forward pass itself has use for it, and again from the first moment at which
backward needs it, or anything that is recomputed from it, until the last such moment. Each is recomputed once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memback.plans.calls.recorded import RecordedCalls

__all__ = ["Judgement", "Timeline"]


@dataclass(frozen=True)
class Judgement:
    """The most bytes that live at once, when that is, and the seconds of what is recomputed."""

    peak_bytes: int
    moment: float
    seconds: float


class Timeline:
    """The moments of a recorded step under any choice of calls to recompute."""

    def __init__(self, calls: RecordedCalls) -> None:
        self.calls = calls
        self._end = float(len(calls.rest) + 1)
        steps = np.diff(calls.rest, prepend=0)
        self._rest_times, self._rest_steps = np.arange(len(steps), dtype=float), steps

    def judge(self, again: Collection[int]) -> Judgement:
        """What it takes if these calls are recomputed, as far as backward needs what they make."""
        again = self.calls.recomputed(again)
        times, steps = self._intervals(again)
        times, steps = np.concatenate([self._rest_times, times]), np.concatenate([self._rest_steps, steps])
        order = np.lexsort((steps, times))  # what dies at a moment, dies before anything is born
        live = np.cumsum(steps[order])
        at = int(np.argmax(live))
        return Judgement(int(live[at]), float(times[order][at]), self.calls.cost(again))

    def _intervals(self, again: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        times: list[float] = []
        steps: list[int] = []
        for start, stop, size in self.lives(range(len(self.calls.values)), again):
            times += (start, stop)
            steps += (size, -size)
        return np.asarray(times), np.asarray(steps, dtype=np.int64)

    def lives(self, numbers: Iterable[int], again: Collection[int]) -> list[tuple[float, float, int]]:
        """When values live, and their bytes: of these numbers alone, if these calls are recomputed."""
        values, readers = self.calls.values, self.calls.readers
        when = self.when(again)
        found: list[tuple[float, float, int]] = []
        for number in numbers:
            value = values[number]
            last = max((when[reader] for reader in readers[number] if reader in when), default=-1.0)
            if value.becomes is not None:
                alone = values[value.becomes].born
                found.append((value.born, alone, value.bytes))
                if value.call in when:
                    found.append((when[value.call], max(last, when[value.call]), value.bytes))
                continue
            alone = min(value.alone, self._end)
            if value.call not in when:
                stop = max(alone, last, min(value.freed, self._end) if value.needs else -1.0)
                found.append((value.born, stop, value.bytes))
                continue
            start = when[value.call]
            stop = max(last, min(value.freed, self._end) if value.needs else -1.0, start)
            if start <= alone:
                found.append((value.born, max(stop, alone), value.bytes))
            else:
                found += [(value.born, alone, value.bytes), (start, stop, value.bytes)]
        return found

    def when(self, again: Collection[int]) -> dict[int, float]:
        """When each call that backward runs again has its turn: shortly before the moment that needs it."""
        calls, values, readers, n = self.calls, self.calls.values, self.calls.readers, len(self.calls)
        first: dict[int, float] = {}
        for call in sorted(again, reverse=True):
            moments = [values[number].needs[0] for number in calls.makes[call] if values[number].needs]
            moments += [first[r] for number in calls.makes[call] for r in readers[number] if r in first]
            if moments:
                first[call] = min(moments)
        return {call: moment - 0.5 + 0.4 * (call + 1) / (n + 1) for call, moment in first.items()}

    @cached_property
    def full(self) -> Judgement:
        """What it takes if everything is kept."""
        return self.judge(set())
