"""The blocks of PyTorch's caching allocator: as it is seen from outside, and as ranges that are split and merged."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Block", "Expandable", "Pool", "Range", "Segment", "round_up"]


@dataclass(frozen=True)
class Block:
    """A range of a segment: ``start`` and ``size`` in bytes, what was asked for, whose it is; free where not in use."""

    start: int
    size: int
    requested: int
    owner: str
    in_use: bool


@dataclass(frozen=True)
class Segment:
    """A range of memory that is taken from the device, ``start`` and ``size`` in bytes, in blocks from its start."""

    start: int
    size: int
    pool: str
    """``small`` or ``large``."""
    blocks: tuple[Block, ...]

    @property
    def free_bytes(self) -> int:
        return sum(block.size for block in self.blocks if not block.in_use)


class Range:
    """A block that is in use, or free, or an address that no memory is behind yet (of an expandable segment)."""

    __slots__ = (
        "age_base",
        "expandable",
        "in_use",
        "mapped",
        "next",
        "owner",
        "pool",
        "prev",
        "requested",
        "size",
        "start",
    )

    def __init__(self, start: int, size: int, pool: Pool, expandable: Expandable | None = None) -> None:
        self.start, self.size, self.pool, self.expandable = start, size, pool, expandable
        self.requested, self.owner = 0, ""
        self.in_use, self.mapped = False, True
        self.prev: Range | None = None
        self.next: Range | None = None
        self.age_base = 0

    def insert_between(self, before: Range | None, after: Range | None) -> None:
        self.prev, self.next = before, after
        if before:
            before.next = self
        if after:
            after.prev = self

    def and_following(self) -> Iterator[Range]:
        """Yield this range and those that follow it in its segment."""
        one: Range | None = self
        while one is not None:
            yield one
            one = one.next

    @property
    def is_split(self) -> bool:
        return self.prev is not None or self.next is not None


class Pool:
    """Free blocks by size and address, and unmapped ranges by address."""

    def __init__(self, small: bool) -> None:
        self.small = small
        self.free: list[tuple[int, int]] = []
        self.unmapped: list[int] = []
        self.ranges: dict[int, Range] = {}
        """Those in ``free`` and ``unmapped``, by address."""
        self.searches = 0

    def add(self, block: Range) -> None:
        block.age_base = self.searches
        insort(self.free, (block.size, block.start))
        self.ranges[block.start] = block

    def remove(self, block: Range) -> None:
        del self.free[bisect_left(self.free, (block.size, block.start))]
        del self.ranges[block.start]

    def add_unmapped(self, block: Range) -> None:
        insort(self.unmapped, block.start)
        self.ranges[block.start] = block

    def remove_unmapped(self, block: Range) -> None:
        del self.unmapped[bisect_left(self.unmapped, block.start)]
        del self.ranges[block.start]

    def free_blocks(self) -> list[Range]:
        """Return the free blocks, the smallest first."""
        return [self.ranges[start] for _, start in self.free]

    def age(self, block: Range) -> int:
        """Return how often a block was searched for since this one is free."""
        return self.searches - block.age_base


@dataclass(frozen=True)
class Expandable:
    """A range of addresses that memory is put behind as needed, a page after the other."""

    start: int
    page: int

    def down(self, address: int) -> int:
        return self.start + (address - self.start) // self.page * self.page

    def up(self, address: int) -> int:
        return self.start - (self.start - address) // self.page * self.page


def round_up(size: int, step: int) -> int:
    """Return the first multiple of ``step`` that is not less than ``size``."""
    return -(-size // step) * step
