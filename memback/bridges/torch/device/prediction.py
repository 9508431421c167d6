"""The figures of a report for a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.exchange import on_card
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.training import Optimizer, figures_of, optimizer_on_card
from memback.bridges.torch.recording.step import Step, explained
from memback.bridges.torch.recording.storages import tensors
from memback.profiling.report import Device, DeviceStep

__all__ = ["device_of", "training_on"]


def device_of(card: Card, **figures: Any) -> Device:
    """A card, for a report."""
    return Device(
        name=card.name, title=card.title, capability=card.capability, memory_bytes=card.memory_bytes, **figures
    )


def training_on(card: Card, step: Step, optimizer: Optimizer) -> tuple[Device, int]:
    """What whole training steps take on a card, and the bytes of the optimiser's state there.

    Raises:
        DryRunError: the step can't be run dry, or the update.
        UsageError: the optimiser is none, or one of another module.
    """
    inputs = step.args, dict(step.kwargs)
    with explained(), on_card(card, step.module, inputs, (step.loss, optimizer)) as (there, (args, kwargs)):
        here = replace(step, args=args, kwargs=kwargs)
        static = there.mode.memory.allocator.allocated_bytes
        made = optimizer_on_card(optimizer, step.module, there)
        with here.unchanged():
            train = _trained(here, made, there.mode)
            steps = [figures_of(there.mode, train) for _ in range(3)]
        first, steady = (DeviceStep(**asdict(one)) for one in (steps[0], steps[-1]))
        figures = {"static_bytes": static, "first": first, "steady": steady, "unmodelled": dict(there.mode.unmodelled)}
        return device_of(card, **figures, optimizer=_name(made)), _state_bytes(made)


def _trained(step: Step, optimizer: Any, mode: DeviceMode) -> Callable[[], None]:
    """A whole training step. What the update asks of numbers, as whether a norm is too large, is answered with 1."""

    def train() -> None:
        step.forward().backward()
        if optimizer is None:
            step.module.zero_grad(set_to_none=True)
            return
        mode.assumed = 1.0
        optimizer.step()
        mode.assumed = None
        optimizer.zero_grad(set_to_none=True)

    return train


def _name(optimizer: Any) -> str | None:
    """What an optimiser is called, with what its update is carried out by."""
    return None if optimizer is None else type(optimizer).__name__


def _state_bytes(optimizer: Any) -> int:
    state = list(getattr(optimizer, "state", {}).values())
    return sum(t.untyped_storage().nbytes() for t in tensors(state) if t.device.type == "cuda")
