"""Whole training steps of a module: forward, backward, and an optimiser's update."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from memback.bridges.torch.recording.dry_mode import assuming
from memback.bridges.torch.recording.exchanges import exchanges_told
from memback.bridges.torch.recording.found import Found
from memback.bridges.torch.recording.phases import Phases, told_of_phases
from memback.bridges.torch.recording.step import Step
from memback.bridges.torch.recording.storages import distinct_bytes, tensors, unwrapped
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import UsageError

__all__ = ["Optimizer", "Training", "found_in", "names_of", "state_bytes", "trained_here", "watched"]

Optimizer = Any
"""A class of optimisers, an instance, or a function of the parameters that gives one."""


@dataclass(frozen=True)
class Training:
    """What makes a training step of a module's forward and backward.

    ``optimizer`` is whose update ends it, ``accumulate`` how often forward and backward run before, ``clip`` the norm
    to which gradients are clipped, if they are.
    """

    optimizer: Optimizer = None
    accumulate: int = 1
    clip: float | None = None

    def check(self) -> None:
        """Raise unless it makes sense.

        Raises:
            UsageError: it does not.
        """
        if self.accumulate < 1:
            raise UsageError(f"accumulate={self.accumulate}: forward and backward run once at least")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip={self.clip}: a norm to clip to is more than 0")

    @property
    def asked(self) -> bool:
        """Whether there is more to a step than forward and backward."""
        return self != Training()

    def made(self, module: nn.Module, names: Mapping[int, str]) -> Any:
        """The optimiser of what stands for a module's parameters; ``names`` are those of the real ones, by their id.

        Raises:
            UsageError: it gives none, or one that has other parameters than the module's.
        """
        if self.optimizer is None:
            return None
        if isinstance(self.optimizer, torch.optim.Optimizer):
            return _twin(self.optimizer, dict(module.named_parameters(remove_duplicate=False)), names)
        made = self.optimizer([parameter for parameter in module.parameters() if parameter.requires_grad])
        if not hasattr(made, "step") or not hasattr(made, "zero_grad"):
            raise UsageError(f"optimizer gives {made!r:.80}, which is no optimiser: it lacks step() or zero_grad()")
        return made

    def of(self, step: Step, optimizer: Any) -> Callable[[], None]:
        """A training step. What the update asks of numbers, as whether a norm is too large, is answered with 1."""

        def train() -> None:
            for _ in range(self.accumulate):
                step.forward().backward()
            with assuming(1.0):
                if self.clip is not None:
                    nn.utils.clip_grad_norm_(step.module.parameters(), self.clip)
                if optimizer is not None:
                    optimizer.step()
            (step.module if optimizer is None else optimizer).zero_grad(set_to_none=True)

        return train


def names_of(module: nn.Module) -> dict[int, str]:
    """What parameters are called, by their id."""
    return {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=False)}


def _twin(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], names: Mapping[int, str]
) -> torch.optim.Optimizer:
    made = copy.copy(optimizer)
    made.__dict__ = dict(optimizer.__dict__)
    made.param_groups = [
        {**group, "params": list(_stood_in(group["params"], parameters, names))} for group in made.param_groups
    ]
    made.state = defaultdict(dict)
    return made


def _stood_in(wanted: Any, parameters: Mapping[str, nn.Parameter], names: Mapping[int, str]) -> Iterator[nn.Parameter]:
    for parameter in wanted:
        if id(parameter) not in names:
            raise UsageError(
                f"the optimizer has a parameter of shape {tuple(parameter.shape)} which is none of the module's: give"
                " the optimiser of this module"
            )
        yield parameters[names[id(parameter)]]


def trained_here(step: Step, training: Training) -> tuple[Tracker, int]:
    """The account of a later training step, dry, where the module is, and the bytes of the optimiser's state.

    Raises:
        DryRunError: the step can't be run dry.
        UsageError: as :meth:`Training.made`.
    """
    names = names_of(step.module)
    with step.standing_in() as here:
        optimizer = training.made(here.module, names)
        train = training.of(here, optimizer)
        with here.unchanged():
            if step.strategy == "ddp" and training.accumulate == 1:  # its stand-in is good for one pass
                _give_state(optimizer)
            else:
                train()
            tracker = watched(found_in(here, optimizer), train, None, step.strategy)
        return tracker, state_bytes(optimizer)


def _give_state(optimizer: Any) -> None:
    """Have an optimiser make its state, by an update of its own."""
    for group in getattr(optimizer, "param_groups", ()):
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    if optimizer is not None:
        with assuming(1.0):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def found_in(step: Step, optimizer: Any) -> Found:
    """What a training step of a module works with."""
    found = Found({"": step.module}, [] if optimizer is None else [optimizer], [])
    known = {id(tensor) for _, tensor in found.arguments()}
    found.others = [tensor for tensor in tensors((step.args, step.kwargs)) if id(tensor) not in known]
    return found


def state_bytes(optimizer: Any, kind: str | None = None) -> int:
    """Bytes of an optimiser's state on a kind of device."""
    state = list(getattr(optimizer, "state", {}).values())
    parts = (part for tensor in tensors(state) for part in unwrapped(tensor))
    return distinct_bytes(part for part in parts if kind in (None, part.device.type))


class _Told(Phases):
    """Tells a tracker of the phases."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def backward_begins(self) -> None:
        if self._tracker.saved_at_end_of_forward is None:
            self._tracker.forward_ended()

    def update_begins(self) -> None:
        self._tracker.update_begins()

    def update_ended(self) -> None:
        self._tracker.update_ended()


def watched(found: Found, run: Callable[[], Any], kind: str | None, strategy: str | None = None) -> Tracker:
    """The account of a training step on the kind of device that is named, and of ranks under a strategy."""
    gradients = ((name, tensor.grad) for name, tensor in found.parameters() if tensor.grad is not None)  # held by none
    tracker = Tracker(found.arguments(), found.root, kind=kind, gradients=gradients)
    tracker.updates = tracker.told_of_forward = True
    with told_of_phases(_Told(tracker)), exchanges_told(tracker, strategy), tracker:
        run()
    tracker.finish()
    return tracker
