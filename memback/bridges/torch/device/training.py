"""What whole training steps take on a card: forward, backward and the optimiser's update, the first and a later one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from memback.bridges.torch.device.exchange import OnCard
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.recording.phases import Phases, told_of_phases
from memback.errors import UsageError

__all__ = ["Figures", "Optimizer", "figures_of", "optimizer_on_card"]

Optimizer = Any
"""A class of optimisers, an instance, or a function of the parameters that gives one."""


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


def optimizer_on_card(optimizer: Optimizer, module: torch.nn.Module, there: OnCard) -> Any:
    """An optimiser of what stands for a module's parameters.

    Raises:
        UsageError: it gives none, or one that has other parameters than the module's.
    """
    if optimizer is None:
        return None
    if isinstance(optimizer, torch.optim.Optimizer):
        return _twin(optimizer, there)
    made = optimizer([parameter for parameter in module.parameters() if parameter.requires_grad])
    if not hasattr(made, "step") or not hasattr(made, "zero_grad"):
        raise UsageError(f"optimizer gives {made!r:.80}, which is no optimiser: it lacks step() or zero_grad()")
    return made


def _twin(optimizer: torch.optim.Optimizer, there: OnCard) -> torch.optim.Optimizer:
    made = copy.copy(optimizer)
    made.__dict__ = dict(optimizer.__dict__)
    made.param_groups = [{**group, "params": list(_stood_in(group["params"], there))} for group in made.param_groups]
    made.state = defaultdict(dict)
    return made


def _stood_in(parameters: Any, there: OnCard) -> Iterator[torch.Tensor]:
    for parameter in parameters:
        if id(parameter) not in there.known:
            raise UsageError(
                f"the optimizer has a parameter of shape {tuple(parameter.shape)} which is none of the module's: give"
                " the optimiser of this module"
            )
        yield there.known[id(parameter)][1]
