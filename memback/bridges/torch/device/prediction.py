"""The figures of a report for a device."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from memback.bridges.torch.device.cards import CONTEXT_BYTES, Card
from memback.bridges.torch.device.exchange import on_card
from memback.bridges.torch.device.make_up import MakeUp, of_peak, picture
from memback.bridges.torch.device.mode import CUDA
from memback.bridges.torch.device.training import Figures, figures_of
from memback.bridges.torch.recording.step import Step, explained
from memback.bridges.torch.recording.tracking import Tracker
from memback.bridges.torch.recording.training import Optimizer, Training, found_in, names_of, state_bytes, watched
from memback.profiling.report import Device, DeviceStep

__all__ = ["device_of", "trained_on", "training_on"]


def device_of(card: Card, **figures: Any) -> Device:
    """A card, for a report."""
    return Device(
        name=card.name,
        title=card.title,
        capability=card.capability,
        memory_bytes=card.memory_bytes,
        context_bytes=CONTEXT_BYTES,
        **figures,
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
        make_up = MakeUp(there.mode.memory, step.module, (args, kwargs))
        optimizer = training.made(step.module, names)
        train = training.of(here, optimizer)
        with here.unchanged():
            steps = [figures_of(there.mode, train) for _ in range(3)]
            figures = {"static_bytes": static, **_explained(make_up, steps, optimizer, card)}
            tracker = watched(found_in(here, optimizer), train, CUDA.type) if watch and training.asked else None
        name = None if optimizer is None else type(optimizer).__name__
        device = device_of(card, **figures, unmodelled=dict(there.mode.unmodelled), optimizer=name)
        return device, tracker, state_bytes(optimizer, CUDA.type)


def _explained(make_up: MakeUp, steps: list[Figures], optimizer: Any, card: Card) -> dict[str, Any]:
    """The first step and the last one, what their peaks are made up of, and whether they fit on the card."""
    state = list(getattr(optimizer, "state", {}).values())
    phases = make_up.replayed(state).phases
    of = {"first": (steps[0], phases["1"]), "steady": (steps[-1], phases[str(len(steps))])}
    figures: dict[str, Any] = {
        name: DeviceStep(**asdict(step), peak=of_peak(peak)) for name, (step, peak) in of.items()
    }
    figures["segments"] = picture(of["steady"][1].segments)
    if max(step.reserved_peak_bytes for step in steps) + CONTEXT_BYTES > card.memory_bytes:
        error = make_up.replayed(state, card).error
        figures["out_of_memory"] = None if error is None else error.message
    return figures
