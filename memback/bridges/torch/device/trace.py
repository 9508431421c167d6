"""An allocator that notes what is asked of it, so that a peak can be explained afterwards."""

from __future__ import annotations

from typing import NamedTuple

import torch

from memback.bridges.torch.device.allocator import CachingAllocator

__all__ = ["Asked", "GivenBack", "Reset", "TracedAllocator"]


class Asked(NamedTuple):
    """Memory is asked for. ``number`` counts requests; ``storage`` is whether it is a tensor's.

    ``backward`` is whether autograd's engine runs, ``forward`` whether what runs is kept for it: a forward pass, or
    one that is run again in backward.
    """

    number: int
    size: int
    storage: bool
    backward: bool
    forward: bool


class GivenBack(NamedTuple):
    """It is given back."""

    number: int
    backward: bool


class Reset(NamedTuple):
    """Peaks start from what is there: a step begins."""


class TracedAllocator(CachingAllocator):
    """PyTorch's caching allocator, of a card whose memory always suffices, and a trace of its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: list[Asked | GivenBack | Reset] = []
        self._numbers: dict[int, int] = {}
        self._count = 0

    def allocate(self, size: int, owner: str = "") -> object:
        block = super().allocate(size, owner)
        self._count += 1
        self._numbers[id(block)] = self._count
        backward = _in_backward()
        self.trace.append(Asked(self._count, size, owner == "storage", backward, torch.is_grad_enabled()))
        return block

    def free(self, block: object) -> None:
        super().free(block)
        self.trace.append(GivenBack(self._numbers.pop(id(block)), _in_backward()))

    def reset_peaks(self) -> None:
        super().reset_peaks()
        self.trace.append(Reset())

    def number_of(self, block: object) -> int:
        """Which request a block that is in use is the answer to."""
        return self._numbers[id(block)]


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
