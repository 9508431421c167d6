"""What a card's memory is asked for: each storage's birth and death, told to PyTorch's allocator."""

from __future__ import annotations

import weakref
from typing import Any

from memback.bridges.torch.device.trace import TracedAllocator
from memback.bridges.torch.recording.storages import key

__all__ = ["Memory"]


class _Held(weakref.ref[Any]):
    """A storage, and the allocator's block for it."""

    __slots__ = ("block", "bytes", "key")

    block: object
    bytes: int
    key: int

    __eq__ = object.__eq__
    __hash__ = object.__hash__


class Memory:
    """The memory of a card on which something runs.

    Attributes:
        allocator: PyTorch's, of a card whose memory always suffices.
        told: a function that is called with each request's block and bytes, and with each block that is given back
            and -1; None where nobody asks.
    """

    def __init__(self) -> None:
        self.allocator = TracedAllocator()
        self.told: Any = None
        self._held: dict[int, _Held] = {}
        self._kept: set[str] = set()

    def meet(self, storage: Any) -> None:
        """Note a storage of the card, if it is new, or of another size than before."""
        held, size = self._held.get(key(storage)), storage.nbytes()
        if held is not None and held.bytes == size:
            return
        if held is not None:
            self._gone(held)
        if size:
            held = _Held(storage, self._gone)
            held.key, held.bytes, held.block = key(storage), size, self.take(size, "storage")
            self._held[held.key] = held

    def take(self, size: int, owner: str = "") -> object:
        """Ask for memory, which is more than 0 bytes; ``owner`` is ``storage`` where it is a tensor's."""
        block = self.allocator.allocate(size, owner)
        if self.told is not None:
            self.told(block, size)
        return block

    def keep(self, what: str, size: int) -> None:
        """Ask once for what a library keeps from its first use to the end of the process."""
        if what not in self._kept:
            self._kept.add(what)
            self.take(size)

    def give_back(self, block: object) -> None:
        """Give back what was asked for."""
        self.allocator.free(block)
        if self.told is not None:
            self.told(block, -1)

    def scratch(self, *sizes: int) -> None:
        """Ask for what a kernel needs while it runs, and give it back."""
        for block in [self.take(size) for size in sizes if size]:
            self.give_back(block)

    def number_of(self, storage: Any) -> int | None:
        """Which of the allocator's requests a storage of the card is the answer to; None where it is none of them."""
        held = self._held.get(key(storage))
        return None if held is None else self.allocator.number_of(held.block)

    def _gone(self, held: _Held) -> None:
        if self._held.get(held.key) is held:
            del self._held[held.key]
            self.give_back(held.block)
