"""The figures of a report for a device."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.exchange import on_card
from memback.bridges.torch.device.mode import CUDA
from memback.bridges.torch.device.training import figures_of
from memback.bridges.torch.recording.step import Step, explained
from memback.bridges.torch.recording.tracking import Tracker
from memback.bridges.torch.recording.training import Optimizer, Training, found_in, names_of, state_bytes, watched
from memback.profiling.report import Device, DeviceStep

__all__ = ["device_of", "trained_on", "training_on"]


def device_of(card: Card, **figures: Any) -> Device:
    """A card, for a report."""
    return Device(
        name=card.name, title=card.title, capability=card.capability, memory_bytes=card.memory_bytes, **figures
    )


def training_on(card: Card, step: Step, optimizer: Optimizer) -> tuple[Device, int]:
    """What whole training steps take on a card, and the bytes of the optimiser's state; as :func:`trained_on`."""
    device, _, size = trained_on(card, step, Training(optimizer), watch=False)
    return device, size


def trained_on(card: Card, step: Step, training: Training, watch: bool = True) -> tuple[Device, Tracker | None, int]:
    """What whole training steps take on a card, the account of a later one, and the bytes of the optimiser's state.

    There is no account without ``watch``, and where nothing follows forward and backward.

    Raises:
        DryRunError: the step can't be run dry, or the update.
        UsageError: the optimiser is none, or one of another module.
    """
    inputs, names = (step.args, dict(step.kwargs)), names_of(step.module)
    with explained(), on_card(card, step.module, inputs, (step.loss, training.optimizer)) as (there, (args, kwargs)):
        here = replace(step, args=args, kwargs=kwargs)
        static = there.mode.memory.allocator.allocated_bytes
        optimizer = training.made(step.module, names)
        train = training.of(here, optimizer)
        with here.unchanged():
            steps = [figures_of(there.mode, train) for _ in range(3)]
            tracker = watched(found_in(here, optimizer), train, CUDA.type) if watch and training.asked else None
        first, steady = (DeviceStep(**asdict(one)) for one in (steps[0], steps[-1]))
        figures = {"static_bytes": static, "first": first, "steady": steady, "unmodelled": dict(there.mode.unmodelled)}
        name = None if optimizer is None else type(optimizer).__name__
        return device_of(card, **figures, optimizer=name), tracker, state_bytes(optimizer, CUDA.type)
