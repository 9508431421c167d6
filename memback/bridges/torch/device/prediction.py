"""The figures of a report for a device."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from memback.bridges.torch.device.cards import CONTEXT_BYTES, Card
from memback.bridges.torch.device.exchange import on_card
from memback.bridges.torch.device.make_up import MakeUp, of_peak, picture
from memback.bridges.torch.device.training import Figures, Optimizer, optimizer_on_card, train
from memback.bridges.torch.recording.step import Step, explained
from memback.bridges.torch.recording.storages import tensors
from memback.profiling.report import Device, DeviceStep

__all__ = ["device_of", "training_on"]


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
    """What whole training steps take on a card, and the bytes of the optimiser's state there.

    Raises:
        DryRunError: the step can't be run dry, or the update.
        UsageError: the optimiser is none, or one of another module.
    """
    inputs = step.args, dict(step.kwargs)
    with explained(), on_card(card, step.module, inputs, (step.loss, optimizer)) as (there, (args, kwargs)):
        here = replace(step, args=args, kwargs=kwargs)
        static = there.mode.memory.allocator.allocated_bytes
        make_up = MakeUp(there.mode.memory, step.module, (args, kwargs))
        made = optimizer_on_card(optimizer, step.module, there)
        with here.unchanged():
            steps = train(there.mode, here.forward, made, step.module)
            figures = {"static_bytes": static, **_explained(make_up, steps, made, card)}
        unmodelled = dict(there.mode.unmodelled)
        return device_of(card, **figures, unmodelled=unmodelled, optimizer=_name(made)), _state_bytes(made)


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


def _name(optimizer: Any) -> str | None:
    """What an optimiser is called, with what its update is carried out by."""
    return None if optimizer is None else type(optimizer).__name__


def _state_bytes(optimizer: Any) -> int:
    state = list(getattr(optimizer, "state", {}).values())
    return sum(t.untyped_storage().nbytes() for t in tensors(state) if t.device.type == "cuda")
