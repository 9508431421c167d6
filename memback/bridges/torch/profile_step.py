"""``memback.bridges.torch.profile_step``: a training step of the user's own, predicted on a card, as one report."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from memback._version import __version__
from memback.bridges.torch.device.cards import Card, card
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.prediction import device_of
from memback.bridges.torch.device.training import Figures, figures_of
from memback.bridges.torch.device.whole_step import on_card_in_place, there_before
from memback.bridges.torch.recording.found import Found, found_by
from memback.bridges.torch.recording.phases import Phases, told_of_phases
from memback.bridges.torch.recording.step import explained
from memback.bridges.torch.recording.storages import distinct_bytes
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import UsageError
from memback.profiling import report as plain
from memback.profiling.mode import Mode
from memback.profiling.report import DeviceStep, Report
from memback.profiling.run import machine, run_of

__all__ = ["profile_step"]


def profile_step(
    step: Callable[..., Any],
    *args: Any,
    device: str = "cuda",
    kwargs: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Predict what any code that trains once takes on a card, without the card: forward, backward and update.

    The modules, optimisers and tensors that the step works with are found from its arguments, from what its closure and
    its globals refer to, and from what these lead on to. They are taken to be on the card, where a script would have
    moved them; a batch that the step itself moves there (``x.to("cuda")``) is moved in each step. Nothing is allocated,
    and afterwards everything is as before: parameters, gradients, the optimisers' state, counters.

    Forward, backward and update are told apart by what runs. So gradients may be accumulated, clipped and scaled,
    parameters have float32 copies or averages, hooks of parameters step in the midst of backward. The step is run five
    times at most, and should do the same each time.

    Args:
        step: trains once: it runs forward, backward, and the update.
        args: what it is called with: modules, optimisers, tensors, whatever it takes.
        device: a card that need not be there, as :func:`profile` has it.
        kwargs: what it is called with by name.
        about: what the report says of the profile, as there.

    Returns:
        the :class:`~memback.profiling.report.Report`, of mode ``full`` alone: its tables and its timeline are of a
        later step, with the update as a phase; its ``device`` has what the ``first`` and a ``steady`` step take.
        Numbers that the step reads (``loss.item()``) are taken to be 1; ``device.assumed`` says where it does.

    Raises:
        UsageError: an unknown card, or the step trains nothing that can be found.
        MembackError: a step that takes decisions on values that are not there.

    Warns:
        UserWarning: a gradient scaler that is switched off, as one is that was made where there is no CUDA.
    """
    on, named = card(device), dict(kwargs or {})
    if not callable(step):
        raise UsageError(f"{step!r:.80} is no function that trains once")
    found = found_by(step, args, named)
    _warn_of_scalers(found)
    run = partial(step, *args, **named)
    with explained("step"):
        others = there_before(on, found, run)
        with on_card_in_place(on, found, others, step, args, named) as (mode, let_go):

            def once() -> None:
                run()
                let_go()

            return _report(on, mode, found, once, _name(step), about or {})


def _report(
    on: Card, mode: DeviceMode, found: Found, run: Callable[[], Any], name: str, about: Mapping[str, Any]
) -> Report:
    static = mode.memory.allocator.allocated_bytes
    mode.assumed = 1.0
    steps = [figures_of(mode, run) for _ in range(3)]
    tracker = watched(found, run, "cuda")
    state = [tensor for _, _, tensor in found.state() if tensor.device.type == "cuda"]
    report = Report(
        memback=__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine={**machine(), "torch": str(torch.__version__), "device": "cpu"},
        profile=_about(found, name, about),
        arguments=plain.Arguments(
            parameter_bytes=distinct_bytes(tensor for _, tensor in found.parameters()),
            buffer_bytes=distinct_bytes(found.root.buffers()),
            input_bytes=tracker.input_bytes,
            optimizer_bytes=distinct_bytes(state),
        ),
        runs=(run_of(Mode("full", None), tracker, tracker.peak.bytes, tracker.peak),),
        device=device_of(
            on,
            static_bytes=static,
            optimizer=", ".join(dict.fromkeys(type(one).__name__ for one in found.optimizers)) or None,
            first=_step(steps[0]),
            steady=_step(steps[-1]),
            unmodelled=dict(mode.unmodelled),
            assumed=tuple(sorted(mode.read)),
        ),
    )
    report.validate()
    return report


class _Told(Phases):
    """Tells a tracker of the phases."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.update_begins, self.update_ended = tracker.update_begins, tracker.update_ended  # type: ignore[method-assign]

    def backward_begins(self) -> None:
        if self._tracker.saved_at_end_of_forward is None:
            self._tracker.forward_ended()


def watched(found: Found, run: Callable[[], Any], kind: str | None) -> Tracker:
    """The account of a step on the kind of device that is named."""
    gradients = [(name, tensor.grad) for name, tensor in found.parameters() if tensor.grad is not None]
    tracker = Tracker(found.arguments(), found.root, kind=kind, gradients=gradients)
    tracker.updates = tracker.told_of_forward = True
    with told_of_phases(_Told(tracker)), tracker:
        run()
    tracker.finish()
    return tracker


def _step(figures: Figures) -> DeviceStep:
    return DeviceStep(**asdict(figures))


def _name(step: Any) -> str:
    return str(getattr(step, "__name__", type(step).__name__))


def _about(found: Found, name: str, given: Mapping[str, Any]) -> plain.Profile:
    modules = [found.root] if type(found.root) is not nn.Module else list(found.root.children())
    classes = ", ".join(type(module).__name__ for module in modules)
    dtypes = dict.fromkeys(str(tensor.dtype).removeprefix("torch.") for _, tensor in found.parameters())
    training = {part.training for module in modules for part in module.modules()}
    own = {"name": classes, **({"training": training.pop() if len(training) == 1 else "mixed"} if training else {})}
    return plain.Profile(
        **{
            "name": name,
            "dtype": ", ".join(dtypes),
            "data": {},
            **given,
            "model": {**own, **given.get("model", {})},
        }
    )


def _warn_of_scalers(found: Found) -> None:
    if any(not scaler.is_enabled() for scaler in found.scalers):
        warnings.warn(
            "the step's gradient scaler is switched off, as one is that was made where there is no CUDA: make it as"
            " torch.amp.GradScaler('cpu'), which scales on a card as well, to have what it takes in the figures",
            stacklevel=3,
        )
