"""PyTorch's CUDA caching allocator, replayed on addresses without memory, to the byte.

What is modelled is one device, one stream, no private pools (CUDA graphs), no cudaMallocAsync. The rules are those of
``DeviceCachingAllocator`` in ``c10/cuda/CUDACachingAllocator.cpp`` of PyTorch 2.14.1; its function is named with each:

- A request is rounded up to 512 B (``round_size``). Of at most 1 MiB, it lives in the small pool, in segments of 2 MiB;
  others live in the large pool, in segments of 20 MiB for less than 10 MiB, else of the request rounded up to 2 MiB
  (``get_allocation_size``).
- The smallest free block that fits is taken, of equal ones the one at the lowest address (``get_free_block``). The rest
  becomes a free block if it is at least 512 B in the small pool, more than 1 MiB in the large one (``should_split``);
  otherwise the whole block counts as allocated.
- A block that is freed merges with its free neighbours within the segment (``free_block``). Segments stay reserved.
- Where the device has no memory left, segments without a block in use are given back, and it is tried once more.

Addresses are made up: a new segment lies above all others. On a device the driver chooses them, which can matter only
where two free blocks have the same size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate, groupby, takewhile

from memback.bridges.torch.device.allocator_conf import AllocatorConf
from memback.bridges.torch.device.blocks import Block, Expandable, Pool, Range, Segment, round_up
from memback.units import KIB, MIB

__all__ = ["CachingAllocator", "CudaOutOfMemory"]

SMALLEST_BLOCK = 512
SMALL_REQUEST = MIB
SMALL_SEGMENT = 2 * MIB
LEAST_LARGE = 10 * MIB
LARGE_ROUNDING = 2 * MIB


class CudaOutOfMemory(Exception):
    """A request that the device can't meet; the message is PyTorch's. Figures are those of that moment, in bytes."""

    def __init__(self, allocator: CachingAllocator, requested_bytes: int) -> None:
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocator.allocated_bytes
        self.reserved_bytes = allocator.reserved_bytes
        self.free_bytes = allocator.free_bytes or 0
        super().__init__(_message(allocator, requested_bytes))


class CachingAllocator:
    """The allocator of a device of ``capacity`` bytes, of which others hold ``other_bytes``; None: as many as needed.

    ``allocated_bytes`` and ``reserved_bytes`` are those of ``torch.cuda.memory_stats``, peaks likewise.
    """

    def __init__(self, conf: AllocatorConf | None = None, capacity: int | None = None, other_bytes: int = 0) -> None:
        self.conf, self.capacity, self.other_bytes = conf or AllocatorConf(), capacity, other_bytes
        self.allocated_bytes = self.reserved_bytes = 0
        self.allocated_peak_bytes = self.reserved_peak_bytes = 0
        self.retries = 0
        """How often segments had to be given back to the device before a request could be met."""
        self._small, self._large = Pool(small=True), Pool(small=False)
        self._heads: dict[int, Range] = {}
        """The first range of each segment, by address."""
        self._next_address = 1 << 44

    def allocate(self, size: int, owner: str = "") -> object:
        """Give out ``size`` bytes, more than 0, and return what :meth:`free` takes.

        Raises:
            CudaOutOfMemory: the device has no memory left for it.
        """
        rounded = self.round_size(size)
        pool = self._small if rounded <= SMALL_REQUEST else self._large
        block = self._free_block(pool, rounded) or self._new_block(pool, rounded)
        if block is None:
            taken = self._segment_size(rounded)
            raise CudaOutOfMemory(self, taken)
        if self._should_split(block, rounded):
            block = self._split(block, rounded)
        block.in_use, block.requested, block.owner = True, size, owner
        self.allocated_bytes += block.size
        self.allocated_peak_bytes = max(self.allocated_peak_bytes, self.allocated_bytes)
        return block

    def free(self, block: object) -> None:
        """Take back what :meth:`allocate` gave."""
        assert isinstance(block, Range)
        assert block.in_use
        block.in_use, block.requested, block.owner = False, 0, ""
        self.allocated_bytes -= block.size
        self._merge(block, block.prev)
        self._merge(block, block.next)
        block.pool.add(block)

    def empty_cache(self) -> None:
        """Give all segments back that have no block in use, as ``torch.cuda.empty_cache``."""
        self._release_unused(self._large)
        self._release_unused(self._small)

    def reset_peaks(self) -> None:
        """Let peaks start from what is there now, as ``torch.cuda.reset_peak_memory_stats``."""
        self.allocated_peak_bytes, self.reserved_peak_bytes = self.allocated_bytes, self.reserved_bytes

    def segments(self) -> tuple[Segment, ...]:
        """Return what is reserved, by address; of an expandable segment each stretch that memory is behind."""
        return tuple(segment for head in sorted(self._heads) for segment in self._stretches(self._heads[head]))

    @property
    def free_bytes(self) -> int | None:
        """What the device could still give; None where it has no limit."""
        return None if self.capacity is None else self.capacity - self.other_bytes - self.reserved_bytes

    @property
    def allowed_bytes(self) -> int | None:
        """How much this process may reserve; None where there is no limit but the device's."""
        if self.capacity is None or self.conf.memory_fraction == 1:
            return None
        return int(self.conf.memory_fraction * self.capacity)

    # -- sizes

    def round_size(self, size: int) -> int:
        """Return the bytes that a request of ``size`` bytes counts as."""
        if size < SMALLEST_BLOCK:
            return SMALLEST_BLOCK
        divisions = self.conf.divisions(size)
        if divisions > 1 and size > SMALLEST_BLOCK * divisions:
            return _next_division(size, divisions)
        return round_up(size, SMALLEST_BLOCK)

    def _segment_size(self, size: int) -> int:
        if size <= SMALL_REQUEST:
            return SMALL_SEGMENT
        return self.conf.large_segment if size < LEAST_LARGE else round_up(size, LARGE_ROUNDING)

    def _is_oversize(self, size: int) -> bool:
        return self.conf.max_split_size is not None and size >= self.conf.max_split_size

    def _should_split(self, block: Range, size: int) -> bool:
        left = block.size - size
        if block.pool.small or self.conf.expandable_segments:
            return left >= SMALLEST_BLOCK
        return not self._is_oversize(size) and left > SMALL_REQUEST

    # -- blocks

    def _free_block(self, pool: Pool, size: int) -> Range | None:
        """Take the free block that fits best out of the pool."""
        if self._collects:
            pool.searches += 1
        at = bisect_left(pool.free, (size, 0))
        if at == len(pool.free):
            return None
        block = pool.ranges[pool.free[at][1]]
        # An expandable block counts as what it could grow to, so that the one that can't is taken first.
        while block.expandable and at + 1 < len(pool.free):
            following = pool.ranges[pool.free[at + 1][1]]
            if _could_grow_to(following) >= _could_grow_to(block):
                break
            block, at = following, at + 1
        if not self._is_oversize(size) and self._is_oversize(block.size):
            return None
        if self._is_oversize(size) and block.size >= size + self.conf.max_non_split_rounding:
            return None
        pool.remove(block)
        return block

    def _split(self, block: Range, size: int) -> Range:
        """Split off the first ``size`` bytes; the rest stays free."""
        first = Range(block.start, size, block.pool, block.expandable)
        block.start += size
        block.size -= size
        first.insert_between(block.prev, block)
        if first.prev is None:
            self._heads[first.start] = first
        block.pool.add(block)
        return first

    def _merge(self, block: Range, other: Range | None) -> None:
        """Let ``block``, which is in no pool, take in a neighbour of its kind."""
        if other is None or other.in_use or other.mapped != block.mapped:
            return
        if other.mapped:
            block.pool.remove(other)
        else:
            block.pool.remove_unmapped(other)
        if block.prev is other:
            block.start = other.start
            block.insert_between(other.prev, block.next)
            if other.prev is None:
                self._heads[block.start] = block
        else:
            block.insert_between(block.prev, other.next)
        block.size += other.size

    # -- memory of the device

    def _new_block(self, pool: Pool, size: int) -> Range | None:
        """Take a new segment; where there is no memory left, after giving back what is unused."""
        if self._collects:
            self._collect_garbage()
        block = self._take(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._take(pool, size)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._take(pool, size)
        return block

    def _take(self, pool: Pool, size: int) -> Range | None:
        bytes_ = self._segment_size(size)
        if self.allowed_bytes is not None and self.reserved_bytes + bytes_ > self.allowed_bytes:
            return None
        if self.conf.expandable_segments:
            return self._expand(pool, size)
        if not self._reserve(bytes_):
            return None
        block = Range(self._next_address, bytes_, pool)
        self._next_address += bytes_ + SMALL_SEGMENT
        self._heads[block.start] = block
        return block

    def _reserve(self, size: int) -> bool:
        """Take ``size`` bytes of the device's memory, if it has them."""
        if self.free_bytes is not None and size > self.free_bytes:
            return False
        self.reserved_bytes += size
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        return True

    def _release(self, block: Range) -> None:
        """Give a segment back, all of which is one free block."""
        block.pool.remove(block)
        del self._heads[block.start]
        self.reserved_bytes -= block.size

    def _release_unused(self, pool: Pool) -> None:
        blocks = pool.free_blocks()
        for block in blocks:
            if not block.expandable and not block.is_split:
                self._release(block)
        for block in blocks:
            if block.expandable:
                self._unmap(block)

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back free blocks that may not be split: the smallest that suffices, or the largest until they do."""
        if self.conf.max_split_size is None or self.conf.expandable_segments:
            return False
        wanted = max(size, self.conf.max_split_size)
        at = bisect_left(pool.free, (wanted, 0))
        if at < len(pool.free):
            self._release(pool.ranges[pool.free[at][1]])
            return True
        released = 0
        while released < wanted and pool.free and self._is_oversize(pool.free[-1][0]):
            released += pool.free[-1][0]
            self._release(pool.ranges[pool.free[-1][1]])
        return released >= wanted

    @property
    def _collects(self) -> bool:
        return self.allowed_bytes is not None and self.conf.garbage_collection_threshold > 0

    def _collect_garbage(self) -> None:
        """Give back whole segments of the large pool that are unused for longer than the average."""
        threshold = int(self.conf.garbage_collection_threshold * (self.allowed_bytes or 0))
        target, reclaimed, pool = self.reserved_bytes - threshold, 0, self._large
        unused = [block for block in pool.free_blocks() if not block.is_split]
        while unused and reclaimed < target:
            mean = sum(map(pool.age, unused)) / len(unused)
            old = [block for block in unused if pool.age(block) >= mean]
            if not old:
                return
            for block in old:
                reclaimed += block.size
                self._release(block)
            unused = [block for block in unused if pool.age(block) < mean]

    # -- expandable segments

    def _expand(self, pool: Pool, size: int) -> Range | None:
        """Put memory behind addresses, after a free block where there is one, until ``size`` bytes are free."""
        block = self._room(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.next
            assert following is not None
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following  # which took in the block before it
        pool.remove(block)
        return block

    def _room(self, pool: Pool, size: int) -> Range:
        """Return the first of the ranges, free and unmapped in turn, that have ``size`` bytes together."""
        for start in pool.unmapped:
            first = pool.ranges[start]
            if first.prev and not first.prev.in_use:
                first = first.prev
            unused = takewhile(lambda one: not one.in_use, first.and_following())
            if any(room >= size for room in accumulate(one.size for one in unused)):
                return first
        page = SMALL_SEGMENT if pool.small else self.conf.large_segment
        total = self.capacity or (1 << 40)
        addresses = max(round_up(total + total // 8, page), round_up(size, page))
        segment = Range(self._next_address, addresses, pool, Expandable(self._next_address, page))
        self._next_address += addresses + SMALL_SEGMENT
        segment.mapped = False
        self._heads[segment.start] = segment
        pool.add_unmapped(segment)
        return segment

    def _map(self, block: Range, size: int) -> bool:
        """Put memory behind the first ``size`` bytes, whole pages, of an unmapped range."""
        assert block.expandable
        mapped = block.expandable.up(block.start + size) - block.start
        if not self._reserve(mapped):
            return False
        pool = block.pool
        pool.remove_unmapped(block)
        block.mapped = True
        if mapped < block.size:
            rest = Range(block.start + mapped, block.size - mapped, pool, block.expandable)
            rest.mapped = False
            rest.insert_between(block, block.next)
            pool.add_unmapped(rest)
            block.size = mapped
        self._merge(block, block.prev)
        self._merge(block, block.next)
        pool.add(block)
        return True

    def _unmap(self, block: Range) -> None:
        """Give the whole pages of a free block back."""
        assert block.expandable
        pool, end = block.pool, block.start + block.size
        start, stop = block.expandable.up(block.start), block.expandable.down(end)
        if start >= stop:
            return
        pool.remove(block)
        if start > block.start:
            before = Range(block.start, start - block.start, pool, block.expandable)
            before.insert_between(block.prev, block)
            if before.prev is None:
                self._heads[before.start] = before
            pool.add(before)
        if stop < end:
            after = Range(stop, end - stop, pool, block.expandable)
            after.insert_between(block, block.next)
            pool.add(after)
        block.start, block.size, block.mapped = start, stop - start, False
        self.reserved_bytes -= block.size
        self._merge(block, block.prev)
        self._merge(block, block.next)
        if block.is_split:
            pool.add_unmapped(block)
        else:
            del self._heads[block.start]

    def _stretches(self, head: Range) -> Iterator[Segment]:
        for mapped, ranges in groupby(head.and_following(), lambda one: one.mapped):
            if mapped:
                blocks = tuple(Block(one.start, one.size, one.requested, one.owner, one.in_use) for one in ranges)
                size = sum(block.size for block in blocks)
                yield Segment(blocks[0].start, size, "small" if head.pool.small else "large", blocks)


def _could_grow_to(block: Range) -> int:
    return block.size + (block.next.size if block.next and not block.next.mapped else 0)


def _next_division(size: int, divisions: int) -> int:
    """Round up to one of ``divisions`` equal steps between two powers of two (``roundup_power2_next_division``)."""
    if size & (size - 1) == 0:
        return size
    floor = 1 << (size.bit_length() - 1)
    step = floor >> (divisions.bit_length() - 1)
    return round_up(size, step) if step else floor << 1


def _message(allocator: CachingAllocator, requested: int) -> str:
    """Say it as PyTorch does (``malloc`` of the allocator, where no block is found)."""
    allowed, total = allocator.allowed_bytes, allocator.capacity or 0
    limit = f"{_size(allowed)} allowed; " if allowed is not None else ""
    process = ""
    if allocator.other_bytes:
        held = _size(allocator.reserved_bytes + allocator.other_bytes)
        process = f"Including non-PyTorch memory, this process has {held} memory in use. "
    return (
        f"CUDA out of memory. Tried to allocate {_size(requested)}. GPU 0 has a total capacity of {_size(total)}"
        f" of which {_size(allocator.free_bytes or 0)} is free. {process}{limit}"
        f"Of the allocated memory {_size(allocator.allocated_bytes)} is allocated by PyTorch, and"
        f" {_size(allocator.reserved_bytes - allocator.allocated_bytes)} is reserved by PyTorch but unallocated."
        f"{'' if allocator.conf.expandable_segments else _ADVICE}"
    )


_ADVICE = (
    " If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid"
    " fragmentation.  See documentation for Memory Management "
    " (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
)


def _size(size: int) -> str:
    """Write a size as PyTorch writes it in messages (``format_size``)."""
    if size <= KIB:
        return f"{size} bytes"
    for unit, step in (("KiB", KIB), ("MiB", MIB)):
        if size <= step * KIB:
            return f"{size / step:.2f} {unit}"
    return f"{size / (MIB * KIB):.2f} GiB"
