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
from memback.errors import UsageError

__all__ = ["Figures", "Optimizer", "optimizer_on_card", "train"]

Optimizer = Any
"""A class of optimisers, an instance, or a function of the parameters that gives one."""


@dataclass(frozen=True)
class Figures:
    """What one step takes, in bytes: of the allocator's blocks, and of the segments that it has from the device."""

    forward_bytes: int
    allocated_peak_bytes: int
    reserved_peak_bytes: int


def train(
    mode: DeviceMode, forward: Callable[[], torch.Tensor], optimizer: Any, module: torch.nn.Module, steps: int = 3
) -> list[Figures]:
    """Carry out training steps, the first of which makes the optimiser's state.

    What the update asks of numbers, such as whether a gradient's norm is too large, is answered with 1.
    """
    taken, allocator = [], mode.memory.allocator
    for _ in range(steps):
        allocator.reset_peaks()
        before = allocator.allocated_bytes
        loss = forward()
        after = allocator.allocated_bytes
        loss.backward()
        del loss
        if optimizer is None:
            module.zero_grad(set_to_none=True)
        else:
            mode.assumed = 1.0
            optimizer.step()
            mode.assumed = None
            optimizer.zero_grad(set_to_none=True)
        taken.append(Figures(after - before, allocator.allocated_peak_bytes, allocator.reserved_peak_bytes))
    return taken


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
