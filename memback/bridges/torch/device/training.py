"""What a whole training step takes on a card: forward, backward and update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.recording.phases import Phases, told_of_phases

__all__ = ["Figures", "figures_of"]


@dataclass(frozen=True)
class Figures:
    """What one step takes, in bytes: of the allocator's blocks, and of the segments that it has from the device."""

    forward_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int


def figures_of(mode: DeviceMode, step: Callable[[], object]) -> Figures:
    """Carry out a training step, and see what it takes: the largest of its forward passes, and its peaks."""
    allocator = mode.memory.allocator
    allocator.reset_peaks()
    passes = _Passes(mode)
    mode.memory.told = passes.hear
    try:
        with told_of_phases(passes):
            step()
    finally:
        mode.memory.told = None
    return Figures(passes.forward_bytes, allocator.allocated_peak_bytes, allocator.reserved_peak_bytes)


class _Passes(Phases):
    """Sees what forward passes make: each begins where the least is allocated since the backward pass before."""

    def __init__(self, mode: DeviceMode) -> None:
        self._mode = mode
        self._allocator = mode.memory.allocator
        self._before = self._allocator.allocated_bytes
        self._least: int | None = None
        self.forward_bytes = 0

    def hear(self, block: object, size: int) -> None:
        """Something has been asked for, or given back."""
        if self._least is not None:
            self._least = min(self._least, self._allocator.allocated_bytes)

    def backward_begins(self) -> None:
        before = self._before if self._least is None else self._least
        self.forward_bytes = max(self.forward_bytes, self._allocator.allocated_bytes - before)
        self._least = None

    def backward_ended(self) -> None:
        self._least = self._allocator.allocated_bytes
