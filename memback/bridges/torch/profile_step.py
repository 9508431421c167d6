"""``memback.bridges.torch.profile_step``: a training step of the user's own, as one report."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import msgspec
import torch
from torch import nn

from memback._version import __version__
from memback.bridges.torch.device.cards import Card, card
from memback.bridges.torch.device.prediction import device_of
from memback.bridges.torch.device.training import figures_of
from memback.bridges.torch.device.whole_step import on_card_in_place, there_before
from memback.bridges.torch.profile import left_of, warn_of_unknown
from memback.bridges.torch.recording.fake import is_dry
from memback.bridges.torch.recording.found import Found, found_by
from memback.bridges.torch.recording.in_place_step import dry_in_place, real_in_place
from memback.bridges.torch.recording.step import explained
from memback.bridges.torch.recording.storages import distinct_bytes
from memback.bridges.torch.recording.tracking import Tracker
from memback.bridges.torch.recording.training import watched
from memback.errors import UsageError
from memback.profiling import report as plain
from memback.profiling.mode import Mode
from memback.profiling.report import Device, DeviceStep, Report
from memback.profiling.run import machine, run_of

__all__ = ["profile_step"]


def profile_step(
    step: Callable[..., Any],
    *args: Any,
    device: str | None = None,
    dry: bool = True,
    kwargs: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Report:
    """Report what any code that trains once takes: forward, backward and update, here or on a card that is not there.

    The modules, optimisers and tensors that the step works with are found from its arguments, from what its closure and
    its globals refer to, and from what these lead on to. For a card they are taken to be there, where a script would
    have moved them; a batch that the step itself moves (``x.to("cuda")``) is moved in each step. Afterwards everything
    is as before: parameters, gradients, the optimisers' state, counters.

    Forward, backward and update are told apart by what runs. So gradients may be accumulated, clipped and scaled,
    parameters have float32 copies or averages, hooks of parameters step in the midst of backward. The step is run five
    times at most, and should do the same each time.

    Args:
        step: trains once: it runs forward, backward, and the update.
        args: what it is called with: modules, optimisers, tensors, whatever it takes.
        device: a card that need not be there, as :func:`profile` has it; by default the figures are those of where
            everything is.
        dry: whether to predict only, so that nothing is allocated; else the step is also run for real.
        kwargs: what it is called with by name.
        about: what the report says of the profile, as :func:`profile` has it.

    Returns:
        the :class:`~memback.profiling.report.Report`, of mode ``full`` alone: its tables and its timeline are of a
        later step than the first, with the update as a phase. With a card, its ``device`` has what the ``first`` and a
        ``steady`` step take. Numbers that the step reads (``loss.item()``) are taken to be 1 in a dry run;
        ``device.assumed`` says where it does.

    Raises:
        UsageError: an unknown card, or one for a run that is not dry; or the step trains nothing that can be found.
        MembackError: a step that takes decisions on values that are not there.

    Warns:
        DryRunWarning: a dry run that met memory of unknown size: its figures are too low.
        UserWarning: a gradient scaler that is switched off, as one is that was made where there is no CUDA.
    """
    on, named = None if device is None else card(device), dict(kwargs or {})
    if on is not None and not dry:
        raise UsageError(f"device={device!r} predicts for a card that need not be there: leave out dry=False")
    if not callable(step):
        raise UsageError(f"{step!r:.80} is no function that trains once")
    found = found_by(step, args, named)
    roots, run = (step, args, named), partial(step, *args, **named)
    if on is not None:
        _warn_of_scalers(found)
        return _report(_on_card(on, found, run, roots), found, step, about or {})
    seen = _here(dry_in_place, found, run, roots)
    if not dry:
        if is_dry([tensor for _, tensor in found.arguments()]):
            raise UsageError("the step's tensors hold no memory, so that it can't be run for real: leave out dry=False")
        seen = replace(_here(real_in_place, found, run, roots), predicted=seen.tracker)
    return _report(seen, found, step, about or {})


@dataclass(frozen=True)
class _Seen:
    """A later step: its account, that of the one that predicts it, what was there before, and the card's figures."""

    tracker: Tracker
    arguments: plain.Arguments
    predicted: Tracker | None = None
    device: Device | None = None


def _on_card(on: Card, found: Found, run: Callable[[], Any], roots: tuple[Any, ...]) -> _Seen:
    with explained("step"):
        others = there_before(on, found, run)
        with on_card_in_place(on, found, others, *roots) as (mode, let_go):
            static = mode.memory.allocator.allocated_bytes
            mode.assumed = 1.0
            steps = []
            for _ in range(3):
                steps.append(figures_of(mode, run))
                let_go()
            seen = _watched(found, run, "cuda")
            device = device_of(
                on,
                static_bytes=static,
                optimizer=", ".join(dict.fromkeys(type(one).__name__ for one in found.optimizers)) or None,
                first=DeviceStep(**asdict(steps[0])),
                steady=DeviceStep(**asdict(steps[-1])),
                unmodelled=dict(mode.unmodelled),
                assumed=tuple(sorted(mode.read)),
            )
            return replace(seen, device=device)


def _here(place: Callable[..., Any], found: Found, run: Callable[[], Any], roots: tuple[Any, ...]) -> _Seen:
    """The second step, where everything is."""
    with explained("step") if place is dry_in_place else nullcontext(), place(found, *roots) as let_go:
        run()
        let_go()
        seen = _watched(found, run, None)
        return replace(seen, predicted=seen.tracker) if place is dry_in_place else seen


def _watched(found: Found, run: Callable[[], Any], kind: str | None) -> _Seen:
    tracker = watched(found, run, kind)
    state = [tensor for _, _, tensor in found.state() if kind in (None, tensor.device.type)]
    arguments = plain.Arguments(
        parameter_bytes=distinct_bytes(tensor for _, tensor in found.parameters()),
        buffer_bytes=distinct_bytes(found.root.buffers()),
        input_bytes=tracker.input_bytes,
        optimizer_bytes=distinct_bytes(state),
    )
    return _Seen(tracker, arguments, tracker if kind else None)


def _report(seen: _Seen, found: Found, step: Callable[..., Any], about: Mapping[str, Any]) -> Report:
    predicted, tracker = seen.predicted, seen.tracker
    known = tracker if predicted is None else predicted
    run = run_of(Mode("full", None), tracker, None if predicted is None else predicted.peak.bytes, known.peak)
    measured = None if predicted is tracker else tracker.peak.bytes
    run = msgspec.structs.replace(run, measured_peak_bytes=measured, **left_of(tracker))
    warn_of_unknown(known.unknown, 4)
    report = Report(
        memback=__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine={**machine(), "torch": str(torch.__version__), "device": _device(found)},
        profile=_about(found, str(getattr(step, "__name__", type(step).__name__)), about),
        arguments=seen.arguments,
        runs=(run,),
        device=seen.device,
    )
    report.validate()
    return report


def _device(found: Found) -> str:
    return next((tensor.device.type for _, tensor in found.arguments()), "cpu")


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
