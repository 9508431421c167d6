"""What was live when, from a run's events: every buffer's life, by category, and the moment of the peak.

Time is counted in events: what event ``i`` brought about holds from ``i`` until the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memback.profiling.accounts import CATEGORIES, Buffer, Event
from memback.profiling.report import Run

__all__ = ["BANDS", "Life", "Moment", "Span", "Timeline"]

UNTOLD = "live"
"""The category of buffers in a report whose events have none."""

BANDS = (*CATEGORIES, UNTOLD)
"""Categories in the order in which they are stacked, the lowest first."""

_GONE = "free"


class Span(NamedTuple):
    """A buffer in one category, from event ``start`` up to event ``end``."""

    buffer: int
    category: str
    start: int
    end: int
    bytes: int


@dataclass(frozen=True)
class Life:
    """A buffer from birth to death (events; the end of the timeline where it outlives that)."""

    buffer: int
    bytes: int
    birth: int
    death: int
    path: str
    op: str
    call: int | None
    origin: str
    source: str


@dataclass(frozen=True)
class Moment:
    """The peak in the timeline: after which event, and what it consists of by category and ``workspace``.

    ``unplaced`` is by how many bytes, category by category, the timeline at this moment has less than the peak:
    what was being made then.
    """

    time: int
    parts: Mapping[str, int]
    unplaced: Mapping[str, int]


class Timeline:
    """The timeline of a run.

    Args:
        run: a run of a report; its events may come from any source, and need not be consistent.

    Attributes:
        events: the run's.
        spans: buffers by category and time, sorted by start.
        lives: every buffer's life, by its id.
        totals: bytes by category (in the order of :data:`BANDS`) after each event.
        told: whether the events have categories.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.events: Sequence[Event] = run.timeline
        self.told = any(event.category is not None for event in self.events)
        self.spans = sorted(self._spans(), key=lambda span: (span.start, span.buffer))
        self.lives = self._lives({buffer.buffer: buffer for buffer in run.buffers})
        self.totals = self._totals()

    @property
    def length(self) -> int:
        """The number of events."""
        return len(self.events)

    @property
    def forward_end(self) -> int:
        """The first event after the forward pass."""
        return next((i for i, event in enumerate(self.events) if event.phase != "forward"), self.length)

    @property
    def top(self) -> int:
        """The highest point, workspace at the peak included, in bytes."""
        return max(self.run.peak.total_bytes, *map(sum, self.totals), 0)

    def alive(self, time: int) -> list[Span]:
        """What is alive after event ``time``, the largest first."""
        found = [span for span in self.spans if span.start <= time < span.end]
        return sorted(found, key=lambda span: (-span.bytes, span.buffer))

    def peak(self) -> Moment | None:
        """The moment that is most like the run's peak; None without events.

        A peak is inside an op, between two events. Of the moments of that op in that phase it is the one whose bytes
        by category are the nearest to the peak's.
        """
        if not self.events:
            return None
        peak = self.run.peak
        parts: dict[str, int] = {name: getattr(peak, name) for name in CATEGORIES}
        place = (peak.phase, peak.path, peak.op)
        here = [i for i, event in enumerate(self.events) if (event.phase, event.path, event.op) == place]
        before = [i - 1 for i in here if i > 0]
        wanted = [*parts.values(), 0] if self.told else [*[0] * len(parts), sum(parts.values())]

        def apart(time: int) -> int:
            return sum(abs(have - want) for have, want in zip(self.totals[time], wanted, strict=True))

        time = min(sorted({*here, *before}) or range(self.length), key=apart)
        unplaced = {
            name: want - have for name, have, want in zip(BANDS, self.totals[time], wanted, strict=True) if want != have
        }
        return Moment(time, {**parts, "workspace": peak.workspace}, unplaced)

    def _spans(self) -> Iterator[Span]:
        sizes: dict[int, int] = {}
        live: dict[int, tuple[str, int]] = {}
        for time, event in enumerate(self.events):
            sizes.setdefault(event.buffer, event.bytes)
            category = event.category or (None if self.told or event.kind == _GONE else UNTOLD)
            before, start = live.get(event.buffer, (None, time))
            if before is not None and before == category:
                continue
            if before is not None:
                yield Span(event.buffer, before, start, time, sizes[event.buffer])
                del live[event.buffer]
            if category is not None:
                live[event.buffer] = category, time
        for buffer, (before, start) in live.items():
            yield Span(buffer, before, start, self.length, sizes[buffer])

    def _lives(self, known: Mapping[int, Buffer]) -> dict[int, Life]:
        ends: dict[int, list[int]] = {}
        for span in self.spans:
            bounds = ends.setdefault(span.buffer, [span.start, span.end, span.bytes])
            bounds[1] = max(bounds[1], span.end)
        return {
            buffer: self._life(buffer, birth, death, size, known.get(buffer))
            for buffer, (birth, death, size) in ends.items()
        }

    def _life(self, number: int, birth: int, death: int, size: int, known: Buffer | None) -> Life:
        if known is not None:
            return Life(
                number, size, birth, death, known.path, known.op, known.call, known.origin or known.op, known.source
            )
        event = self.events[birth]
        return Life(number, size, birth, death, event.path, event.op, None, f"buffer of {event.op}", "")

    def _totals(self) -> list[tuple[int, ...]]:
        changes = [[0] * len(BANDS) for _ in range(self.length + 1)]
        for span in self.spans:
            band = BANDS.index(span.category)
            changes[span.start][band] += span.bytes
            changes[span.end][band] -= span.bytes
        now = [0] * len(BANDS)
        totals = []
        for change in changes[: self.length]:
            now = [have + more for have, more in zip(now, change, strict=True)]
            totals.append(tuple(now))
        return totals
