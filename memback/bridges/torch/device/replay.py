"""A step's allocations, replayed through PyTorch's caching allocator: peaks, fragmentation, the picture of segments."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

from memback.bridges.torch.device.allocator import CachingAllocator, CudaOutOfMemory
from memback.bridges.torch.device.allocator_conf import AllocatorConf, parse_conf
from memback.bridges.torch.device.blocks import Segment
from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.cards import card as card_of

__all__ = ["Alloc", "EmptyCache", "Event", "Free", "Mark", "OutOfMemory", "Peak", "Replay", "replay"]


class Alloc(NamedTuple):
    """``size`` bytes are asked for; 0 takes nothing. ``owner`` is whatever the picture shall say of the block."""

    handle: Hashable
    size: int
    owner: str = ""


class Free(NamedTuple):
    """What ``handle`` stands for is given back."""

    handle: Hashable


class Mark(NamedTuple):
    """A phase begins: its peaks start from what is there (``torch.cuda.reset_peak_memory_stats``)."""

    name: str


class EmptyCache(NamedTuple):
    """Unused segments are given back (``torch.cuda.empty_cache``)."""


Event: TypeAlias = Alloc | Free | Mark | EmptyCache


@dataclass(frozen=True)
class Peak:
    """A phase's highest figures, in bytes, and what was reserved at the moment of the highest allocation."""

    allocated_bytes: int
    """``torch.cuda.max_memory_allocated``."""
    reserved_bytes: int
    """``torch.cuda.max_memory_reserved``, which may be reached at another moment."""
    event: int
    """The index of the event after which the most was allocated for the first time; -1 where nothing was."""
    segments: tuple[Segment, ...]
    """What was reserved then."""
    start_bytes: int
    """What was allocated when the phase began: blocks, which may be larger than what was asked for."""
    end_bytes: int
    """What was allocated when it ended."""

    @property
    def fragmentation_bytes(self) -> int:
        """What was reserved and not allocated at the moment of the highest allocation."""
        return sum(segment.free_bytes for segment in self.segments)


@dataclass(frozen=True)
class OutOfMemory:
    """The request at which the device's memory did not suffice; ``message`` is PyTorch's."""

    event: int
    phase: str
    owner: str
    requested_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    free_bytes: int
    message: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Replay:
    """The peaks of each phase, in their order, and the error that ended it, if one did."""

    phases: dict[str, Peak]
    error: OutOfMemory | None


def replay(
    events: Iterable[Event], card: Card | str | None = None, conf: str | AllocatorConf = "", other_bytes: int = 0
) -> Replay:
    """Replay events through the caching allocator of a card.

    Args:
        events: What is asked for and given back, in the order of one stream. A phase has the name of its :class:`Mark`;
            what comes before the first mark, if anything does, is the phase ``""``.
        card: A card, its name (``cuda:a100-40gb``), or None: a device whose memory always suffices.
        conf: The value of PYTORCH_CUDA_ALLOC_CONF.
        other_bytes: What the card's context, libraries and other processes hold of its memory.

    Raises:
        UsageError: a card or a setting that isn't known.
        ValueError: an event that frees what isn't there, or a handle that is allocated twice.
    """
    events = events if isinstance(events, Sequence) else list(events)
    run = _Run(card, conf, other_bytes)
    for number, event in enumerate(events):
        run.carry_out(number, event)
        if run.error:
            break
    run.end_phase()
    moments = {phase.event for phase in run.phases.values()}
    pictures = _pictures(events[: max(moments, default=-1) + 1], moments, _Run(card, conf, other_bytes))
    phases = {name: replace(phase, segments=pictures.get(phase.event, ())) for name, phase in run.phases.items()}
    return Replay(phases, run.error)


def _pictures(events: Sequence[Event], moments: set[int], run: _Run) -> dict[int, tuple[Segment, ...]]:
    """Replay once more, and return the segments after each of these events: peaks are known only at the end."""
    pictures = {}
    for number, event in enumerate(events):
        run.carry_out(number, event)
        if number in moments:
            pictures[number] = run.allocator.segments()
    return pictures


class _Run:
    """One replay: the blocks that handles stand for, and the phases that have ended."""

    def __init__(self, card: Card | str | None, conf: str | AllocatorConf, other_bytes: int) -> None:
        known = card_of(card) if isinstance(card, str) else card
        settings = parse_conf(conf) if isinstance(conf, str) else conf
        self.allocator = CachingAllocator(settings, known.memory_bytes if known else None, other_bytes)
        self.blocks: dict[Hashable, object] = {}
        self.phases: dict[str, Peak] = {}
        """Without their pictures."""
        self.phase, self.moment, self.start = "", -1, 0
        self.error: OutOfMemory | None = None

    def carry_out(self, number: int, event: Event) -> None:
        match event:
            case Alloc():
                self._allocate(number, event)
            case Free(handle):
                if handle not in self.blocks:
                    raise ValueError(f"event {number} frees {handle!r}, which is not allocated")
                block = self.blocks.pop(handle)
                if block is not None:
                    self.allocator.free(block)
            case Mark(name):
                if self.phase or self.moment >= 0:
                    self.end_phase()
                if name in self.phases:
                    raise ValueError(f"event {number} begins the phase {name!r} for a second time")
                self.phase, self.moment, self.start = name, number, self.allocator.allocated_bytes
                self.allocator.reset_peaks()
            case EmptyCache():
                self.allocator.empty_cache()

    def end_phase(self) -> None:
        """Note the peaks of the phase."""
        allocator = self.allocator
        self.phases[self.phase] = Peak(
            allocator.allocated_peak_bytes,
            allocator.reserved_peak_bytes,
            self.moment,
            (),
            self.start,
            allocator.allocated_bytes,
        )

    def _allocate(self, number: int, event: Alloc) -> None:
        if event.handle in self.blocks:
            raise ValueError(f"event {number} allocates {event.handle!r}, which is allocated already")
        peak = self.allocator.allocated_peak_bytes
        try:
            self.blocks[event.handle] = self.allocator.allocate(event.size, event.owner) if event.size else None
        except CudaOutOfMemory as error:
            self.error = OutOfMemory(
                number,
                self.phase,
                event.owner,
                error.requested_bytes,
                error.allocated_bytes,
                error.reserved_bytes,
                error.free_bytes,
                str(error),
                self.allocator.segments(),
            )
        if self.allocator.allocated_peak_bytes > peak:
            self.moment = number
