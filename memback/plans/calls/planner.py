"""The cheapest calls to recompute within a budget: minimum cuts within parts of a step, and a chain of parts.

A step is divided where few bytes go on from one call to later ones. Each part, and each run of neighbouring parts, has
its own ways to be run with less kept (:mod:`memback.plans.calls.options`). Which of them to take is a shortest path:
backward comes to a part when all later ones are done, so that what it sees of the rest is what earlier parts keep. Of
all (bytes kept so far, seconds so far) at a boundary, those that no other beats are followed on, as long as what is
recomputed in a part fits beside them. (Beaumont et al. 2019, "Optimal checkpointing for heterogeneous chains", arXiv
1911.13214, keep stages whole; minimum cuts are those of PyTorch's partitioner.)

A path counts what is live part by part, a :class:`~memback.plans.calls.timeline.Timeline` counts it moment by moment,
and its word is what holds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memback.plans.calls.options import Cut, Part, cuts
from memback.plans.calls.recorded import RecordedCalls
from memback.plans.calls.timeline import Judgement, Timeline

__all__ = ["Choice", "Planner"]

_PARTS = 96
"""Most parts that a step is divided into."""
_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""How many neighbouring parts may be run as one."""
_LABELS = 400
"""Most pairs of bytes and seconds that are followed on from a boundary."""
_REFINEMENTS = 8
"""How often the bytes that a path is given are changed for what its timeline shows."""


@dataclass(frozen=True)
class Choice:
    """Calls that are recomputed, and what that takes."""

    again: frozenset[int]
    judged: Judgement


@dataclass(frozen=True)
class _Option:
    """A way to run a part: what it keeps until backward comes to it, what it takes then, and its seconds."""

    again: frozenset[int]
    kept: int
    most: int
    forward: int
    seconds: float


class Planner:
    """Choices for a step's recorded calls."""

    def __init__(self, calls: RecordedCalls) -> None:
        self.calls = calls
        self.timeline = Timeline(calls)
        self._options: dict[tuple[int, int], list[_Option]] = {}
        self._cuts: dict[object, list[frozenset[int]]] = {}
        self._hulls: dict[frozenset[int], list[Cut]] = {}

    def judged(self, again: Collection[int]) -> Choice:
        """A choice with its judgement."""
        needed = frozenset(self.calls.recomputed(again))
        return Choice(needed, self.timeline.judge(needed))

    @cached_property
    def everything(self) -> Choice:
        """Nothing is recomputed."""
        return Choice(frozenset(), self.timeline.full)

    # -- parts

    @cached_property
    def bounds(self) -> list[int]:
        """The first call of each part, and the number of calls."""
        calls = self.calls
        n = len(calls)
        going = np.zeros(n + 1)
        for number, value in enumerate(calls.values):
            readers = calls.readers[number]
            if readers and readers[-1] > value.call:
                going[value.call + 1] += value.bytes
                going[readers[-1] + 1] -= value.bytes
        crossing = np.cumsum(going)[1:n]  # in front of call 1, 2, ...
        saved = np.zeros(n)
        for value in calls.values:
            saved[value.call] += value.bytes if value.needs else 0
        total = np.cumsum(saved)
        least = total[-1] / _PARTS if n else 0
        lows = [i for i in range(1, n) if self._is_low(crossing, i - 1)]
        bounds, last = [0], 0.0
        for i in lows:
            if total[i - 1] - last >= least:
                bounds.append(i)
                last = total[i - 1]
        return [*bounds, n]

    @staticmethod
    def _is_low(crossing: np.ndarray, i: int) -> bool:
        """Whether a position is the last of a stretch of equally few bytes between higher ones."""
        here = crossing[i]
        after = crossing[i + 1] if i + 1 < len(crossing) else np.inf
        j = i
        while j > 0 and crossing[j - 1] == here:
            j -= 1
        before = crossing[j - 1] if j else np.inf
        return bool(after > here and before > here)

    @cached_property
    def turns(self) -> list[float]:
        """By part, the moment at which backward comes to it."""
        calls, bounds = self.calls, self.bounds
        part_of = np.searchsorted(bounds, range(len(calls)), side="right") - 1
        first = [np.inf] * (len(bounds) - 1)
        for value in calls.values:
            part = part_of[value.call]
            if value.needs:
                first[part] = min(first[part], value.needs[0])
        turn = calls.begins[-1]
        for part in reversed(range(len(first))):
            turn = first[part] = max(first[part], turn) if np.isfinite(first[part]) else turn
        return first

    # -- what a part can do

    def options(self, start: int, stop: int) -> list[_Option]:
        """The ways to run the parts from ``start`` to ``stop`` as one."""
        if (start, stop) not in self._options:
            part = Part(self.calls, self.bounds[start], self.bounds[stop])
            found = [self._weighed(part, start, stop, again) for again in dict.fromkeys(self._ways(part))]
            self._options[start, stop] = _undominated(found)
        return self._options[start, stop]

    def _ways(self, part: Part) -> list[frozenset[int]]:
        calls = self.calls
        key = self._kind(part)
        if key not in self._cuts:
            ways = [cut.again for cut in cuts(part)]
            replayable = [
                c
                for c in range(part.start, part.stop)
                if calls.replayable[c] and not any(part.goes_on(v) for v in calls.makes[c])
            ]
            ways.append(frozenset(calls.recomputed({c for c in replayable if not calls.products[c]})))
            ways.append(frozenset(calls.recomputed(replayable)))
            self._cuts[key] = [frozenset(c - part.start for c in way) for way in ways]
        return [frozenset(c + part.start for c in way) for way in self._cuts[key]]

    def _kind(self, part: Part) -> object:
        """What tells a part from those with other ways to be run."""
        calls, start = self.calls, part.start
        return tuple(
            (
                calls.kinds[c],
                calls.replayable[c],
                tuple(calls.values[v].call - start if calls.values[v].call >= start else -1 for v in calls.reads[c]),
                tuple((calls.values[v].bytes, bool(calls.values[v].needs), part.goes_on(v)) for v in calls.makes[c]),
            )
            for c in range(part.start, part.stop)
        )

    def _weighed(self, part: Part, start: int, stop: int, again: frozenset[int]) -> _Option:
        """A way to run a part with what it takes, by the lives of the values that it makes."""
        times: list[float] = []
        steps: list[int] = []
        for born, died, size in self.timeline.lives(part.values(), again):
            times += (born, died)
            steps += (size, -size)
        rest = self.calls.rest
        turn, end = self.turns[stop - 1], self.turns[start - 1] if start else float(len(rest))
        moments = np.asarray(times)
        order = np.lexsort((np.asarray(steps), moments)) if times else np.zeros(0, int)
        live, moments = np.cumsum(np.asarray(steps, dtype=np.int64)[order]), moments[order]
        kept = _at(moments, live, turn - 0.75)
        most = self._most(moments, live, turn - 0.75, end)
        forward = self._most(moments, live, self.calls.begins[part.start], self.calls.begins[part.stop])
        return _Option(again, kept, most, forward, self.calls.cost(again))

    def _most(self, moments: np.ndarray, live: np.ndarray, start: float, stop: float) -> int:
        """The most bytes of a part's values, and of all else that is no value, from one moment to another."""
        low, high = int(np.searchsorted(moments, start)), int(np.searchsorted(moments, stop, side="right"))
        inner = moments[low:high]
        rest = self.calls.rest
        ticks = np.arange(max(int(np.ceil(start)), 0), min(int(stop) + 1, len(rest)))
        most = 0
        if len(inner):
            beside = np.where(inner >= 0, rest[np.clip(np.floor(inner).astype(int), 0, len(rest) - 1)], 0)
            most = int((live[low:high] + beside).max())
        if len(ticks):
            at = np.searchsorted(moments, ticks, side="right") - 1
            own = np.where(at >= 0, live[np.clip(at, 0, None)], 0) if len(live) else np.zeros(len(ticks), int)
            most = max(most, int((own + rest[ticks]).max()))
        return most

    # -- paths

    @cached_property
    def _after(self) -> int:
        """The most that lives besides values between the region's forward and backward's first part."""
        start, stop = int(self.calls.begins[-1]), int(self.turns[-1]) if len(self.bounds) > 1 else 0
        rest = self.calls.rest[max(start - 1, 0) : max(stop, start)]
        return int(rest.max(initial=0))

    def path(self, room: int) -> frozenset[int] | None:
        """The calls that the cheapest path within so many bytes runs again; None if there is none."""
        parts = len(self.bounds) - 1
        kept: list[np.ndarray] = [np.zeros(1)] + [np.zeros(0)] * parts
        seconds: list[np.ndarray] = [np.zeros(1)] + [np.zeros(0)] * parts
        came: list[list[tuple[int, int, _Option] | None]] = [[None], *([] for _ in range(parts))]
        for stop in range(1, parts + 1):
            new: list[tuple[np.ndarray, np.ndarray, int, np.ndarray, _Option]] = []
            for start in {stop - length for length in _LENGTHS if length <= stop}:
                if not len(kept[start]):
                    continue
                for option in self.options(start, stop):
                    fits = np.flatnonzero(kept[start] + max(option.most, option.forward) <= room)
                    if len(fits):
                        held, spent = kept[start][fits] + option.kept, seconds[start][fits] + option.seconds
                        new.append((held, spent, start, fits, option))
            if new:
                kept[stop], seconds[stop], came[stop] = _followed(new)
        last = np.flatnonzero(kept[parts] + self._after <= room)
        if not len(last):
            return None
        at = int(last[np.argmin(seconds[parts][last])])
        again: set[int] = set()
        stop = parts
        while (step := came[stop][at]) is not None:
            stop, at, option = step
            again |= option.again
        return frozenset(again)

    def within(self, budget: int) -> Choice | None:
        """The cheapest choice within a budget that is found; None if there is none."""
        if self.everything.judged.peak_bytes <= budget:
            return self.everything
        found = [choice for choice in (self._by_path(budget), self._by_cuts(budget)) if choice is not None]
        best = min(found, key=_rank) if found else self.leanest
        return self._bettered(best, budget) if best.judged.peak_bytes <= budget else None

    def _by_path(self, budget: int) -> Choice | None:
        """What the cheapest paths give, with more or less room until their timelines are just within the budget."""
        low, high = 0.0, 2.0 * budget
        room: float = budget
        best: Choice | None = None
        for _ in range(_REFINEMENTS):
            again = self.path(int(room))
            if again is None:
                low, room = room, (room + high) / 2
                continue
            choice = self.judged(again)
            over = choice.judged.peak_bytes - budget
            if over <= 0:
                best = min(best or choice, choice, key=_rank)
                low = room
                room = min(room - over, (room + high) / 2) if over < -budget // 1000 else (room + high) / 2
            else:
                high = room
                room = max(room - over, (low + room) / 2) if best is None else (low + room) / 2
        return best

    def _by_cuts(self, budget: int) -> Choice | None:
        """The cheapest minimum cut within a budget, and in later parts the next cheaper one, as far as that fits."""
        fitting = [choice for choice in self._whole if choice.judged.peak_bytes <= budget]
        if not fitting:
            return None
        best = dear = min(fitting, key=_rank)
        cheaper = [choice for choice in self._whole if choice.judged.seconds < dear.judged.seconds]
        if not cheaper:
            return best
        cheap = max(cheaper, key=_rank)
        for early in (True, False):
            low, high = 0, len(self.bounds) - 1  # of parts that are run as in the dearer cut
            while high - low > 1:
                middle = (low + high) // 2
                mixed = self.judged(self._mixed(dear, cheap, middle, early))
                if mixed.judged.peak_bytes <= budget:
                    best, high = min(best, mixed, key=_rank), middle
                else:
                    low = middle
        return best

    def _mixed(self, one: Choice, other: Choice, parts: int, early: bool) -> set[int]:
        """Of one choice what it runs again in the first, or the last, so many parts; of the other one the rest."""
        bound = self.bounds[parts if early else len(self.bounds) - 1 - parts]
        return {c for c in one.again if (c < bound) is early} | {c for c in other.again if (c < bound) is not early}

    @cached_property
    def leanest(self) -> Choice:
        """The choice with the least peak that is found."""
        best = min((self.everything, *self._whole), key=_by_peak)
        low, high = 0, best.judged.peak_bytes
        while high - low > max(high // 200, 1):
            middle = (low + high) // 2
            again = self.path(middle)
            if again is None:
                low = middle
                continue
            high, choice = middle, self.judged(again)
            best = min(best, choice, key=_by_peak)
        return self._lowered(best)

    def _lowered(self, choice: Choice) -> Choice:
        """A choice with a lower peak, by calls that are run again or kept after all: those that make most first."""
        calls = self.calls
        able = [c for c in range(len(calls)) if calls.replayable[c]]
        order = sorted(able, key=lambda c: sum(calls.values[v].bytes for v in calls.makes[c]), reverse=True)
        for call in order[:_TRIES]:
            other = self.judged(choice.again ^ {call})
            choice = min(choice, other, key=_by_peak)
        return choice

    def least_seconds(self, budget: int) -> float:
        """A bound: no choice within a budget recomputes for less.

        At the crest of the plain step, whatever is kept for later has to fit beside all that is in use. For each price
        of a byte, a minimum cut of all calls is a bound for all choices that keep so much or less (Lagrange).
        """
        free, beside = self._crest
        room = budget - beside
        return max(0.0, *(cut.seconds + cut.price * (cut.kept - room) for cut in self._hull(free)))

    @cached_property
    def _crest(self) -> tuple[frozenset[int], int]:
        """The values that nothing needs after the plain step's peak, and the bytes that are there with any choice."""
        calls = self.calls
        moment = max(self.timeline.full.moment, calls.begins[-1])
        values = enumerate(calls.values)
        free = frozenset(n for n, value in values if value.needs and value.needs[-1] <= moment)
        used = sum(calls.values[n].bytes for n in free if calls.values[n].freed > moment)
        there = sum(
            v.bytes for n, v in enumerate(calls.values) if v.becomes is None and math.isinf(v.alone) and n not in free
        )
        return free, int(calls.rest[int(moment)]) + used + there

    def _hull(self, free: frozenset[int] = frozenset()) -> list[Cut]:
        """The minimum cuts of all calls."""
        if free not in self._hulls:
            self._hulls[free] = cuts(Part(self.calls, 0, len(self.calls), free))
        return self._hulls[free]

    @cached_property
    def _whole(self) -> list[Choice]:
        """The minimum cuts of all calls, by what is kept at the end of the forward pass, and at the crest."""
        cuts = [*self._hull(), *self._hull(self._crest[0])]
        return [self.judged(again) for again in dict.fromkeys(cut.again for cut in cuts)]

    def _bettered(self, choice: Choice, budget: int) -> Choice:
        """A choice with less recomputed, as long as it is within the budget: dear calls for few bytes first."""
        calls = self.calls
        size = {c: sum(calls.values[v].bytes for v in calls.makes[c]) for c in choice.again}
        order = sorted(choice.again, key=lambda c: calls.costs[c] / max(size[c], 1), reverse=True)
        for call in order[:_TRIES]:
            if call in choice.again:
                other = self.judged(choice.again - {call})
                if other.judged.peak_bytes <= budget and _rank(other) < _rank(choice):
                    choice = other
        return choice


_TRIES = 150
"""Most calls that are tried to be kept after all."""


def _rank(choice: Choice) -> tuple[float, int]:
    return choice.judged.seconds, choice.judged.peak_bytes


def _by_peak(choice: Choice) -> tuple[int, float]:
    return choice.judged.peak_bytes, choice.judged.seconds


def _at(moments: np.ndarray, live: np.ndarray, time: float) -> int:
    at = int(np.searchsorted(moments, time, side="right")) - 1
    return int(live[at]) if at >= 0 else 0


def _undominated(options: Sequence[_Option]) -> list[_Option]:
    """Those that no other one is as good as in every respect."""
    best: list[_Option] = []
    for option in sorted(options, key=lambda o: (o.seconds, o.kept, o.most)):
        if not any(o.kept <= option.kept and o.most <= option.most and o.forward <= option.forward for o in best):
            best.append(option)
    return best


def _followed(
    new: Sequence[tuple[np.ndarray, np.ndarray, int, np.ndarray, _Option]],
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, _Option] | None]]:
    """The pairs at a boundary that no other beats, thinned out where there are too many."""
    held = np.concatenate([entry[0] for entry in new])
    spent = np.concatenate([entry[1] for entry in new])
    source = np.concatenate([np.full(len(entry[0]), i) for i, entry in enumerate(new)])
    place = np.concatenate([entry[3] for entry in new])
    order = np.lexsort((spent, held))
    falls = spent[order] < np.minimum.accumulate(np.concatenate([[np.inf], spent[order]]))[:-1]
    order = order[falls]
    if len(order) > _LABELS:
        grid = np.linspace(held[order[0]], held[order[-1]], _LABELS)
        order = order[np.unique(np.searchsorted(held[order], grid, side="right") - 1)]
    return held[order], spent[order], [(new[source[i]][2], int(place[i]), new[source[i]][4]) for i in order]
