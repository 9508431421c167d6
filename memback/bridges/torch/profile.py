"""``memback.bridges.torch.profile``: a training step of a PyTorch module in several modes, as one report."""

from __future__ import annotations

import dataclasses
import datetime
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from msgspec.structs import replace
from torch.nn.parallel import DistributedDataParallel

from memback._version import __version__
from memback.bridges.torch.device.cards import Card, card
from memback.bridges.torch.device.exchange import place_on
from memback.bridges.torch.device.prediction import device_of, trained_on
from memback.bridges.torch.planning.plan import TorchPlan, planned_by
from memback.bridges.torch.recording.allocator import Allocated
from memback.bridges.torch.recording.calls import check_all_visible
from memback.bridges.torch.recording.leftovers import looked_for_once
from memback.bridges.torch.recording.losses import with_name
from memback.bridges.torch.recording.paths import described
from memback.bridges.torch.recording.sharding import bucket_bytes, fsdp_params
from memback.bridges.torch.recording.step import DryRunError, Loss, Step, sum_of_outputs
from memback.bridges.torch.recording.storages import distinct_bytes
from memback.bridges.torch.recording.tracking import Tracker
from memback.bridges.torch.recording.training import Optimizer, Training, trained_here
from memback.errors import MembackError, UsageError
from memback.profiling import report as plain
from memback.profiling.measuring import Peak, Seconds, median
from memback.profiling.mode import Mode
from memback.profiling.report import Device, Report, Run
from memback.profiling.run import machine, modes_of, run_of

__all__ = ["MODES", "DryRunWarning", "WatchingWarning", "left_of", "profile", "warn_of_unknown"]

MODES = ("retain-all", "full", "inference")
"""The ways to run a module's step, from the most memory to the least."""

Progress = Callable[[str, int, int], None]

_T = TypeVar("_T")


@looked_for_once()
def profile(
    module: torch.nn.Module,
    *inputs: Any,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    modes: Sequence[str] = MODES,
    dry: bool = False,
    autocast: torch.dtype | None = None,
    rounds: int = 3,
    policy: str | TorchPlan | None = None,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
    device: str | None = None,
    optimizer: Optimizer = None,
    accumulate: int = 1,
    clip: float | None = None,
) -> Report:
    """Run a training step of a module in several modes and report the memory of each, op by op.

    Args:
        module: any module, as it is: on a CPU or CUDA, in training mode or not, with parts frozen or tied or under
            ``torch.utils.checkpoint``. Parameters, buffers, gradients and random streams are afterwards as before.
            Under DDP or FSDP2 the report is this rank's, and every rank must call this with the same modes and rounds.
        inputs: what it is called with: tensors of any shape and dtype, and anything else. They, too, are as before.
        loss: gives the loss, a tensor of one number, from what the module gives; by default the sum of its numbers.
        kwargs: what it is called with by name.
        modes: of ``retain-all`` (whatever an op of the forward pass gives is kept), ``full`` (the module as it is, with
            the checkpoints that it has itself), ``checkpoint`` (with those of a policy) and ``inference`` (no
            gradients).
        dry: whether to predict only: nothing is allocated or run. So it is, too, where parameters or inputs hold no
            memory (fake tensors, the device ``meta``).
        autocast: the dtype of automatic mixed precision in the forward pass.
        rounds: how often each mode is timed; the median is reported.
        policy: what is run again in mode ``checkpoint``, which it adds: ``"sqrt"``, ``"every:k"`` or ``"all"``, or a
            plan that :func:`memback.bridges.torch.plan` made. Which blocks these are about, that function says.
        about: what the report says of the profile (``name``, ``model``, ``data``, ``dtype``), beside whether the module
            is in training mode (``model["training"]``) and which loss was taken (``data["loss"]``).
        progress: called with (what is done now, steps done, steps in all).
        device: a card that need not be there, for a dry run: ``cuda:h100``, ``cuda:a100-80gb``, ``cuda:t4``, ... The
            step is run as CUDA would run it there, with its kernels' choices, and the report's ``device`` says what
            whole training steps take, by PyTorch's allocator.
        optimizer: for a dry run, whose update ends the training step: a class such as ``torch.optim.AdamW``, an
            optimiser of the module's parameters, or a function that gives one of the parameters to be trained. Mode
            ``full`` is then a later step than the first, with the update as a phase.
        accumulate: how often forward and backward run before the update.
        clip: the norm to which gradients are clipped before the update (``torch.nn.utils.clip_grad_norm_``).

    Returns:
        the :class:`~memback.profiling.report.Report`; sizes in bytes, times in seconds. FLOPs are those of products of
        matrices, convolutions and attention. Measured is the peak of the storages that PyTorch makes. Gradients of two
        modes can differ in their last bits where a kernel adds up in no fixed order, as some do on CUDA, and on a CPU
        with several threads (``torch.use_deterministic_algorithms`` names them).

    Raises:
        UsageError: an unknown mode, a loss that is none, or a module that is compiled or scripted, or not yet made in
            full.
        MembackError: a dry run of a step that takes decisions on values. What goes wrong in another mode than ``full``
            or ``checkpoint`` alone is no error: the report has a row for the mode that says why.

    Warns:
        DryRunWarning: a dry run that met memory of unknown size: its figures are too low. Beside a real run there is
            then no prediction.
        WatchingWarning: autograd takes more memory for the step while it is watched, so that figures are too high.
    """
    _check(module)
    taken, name_of_loss = with_name(loss)
    step = Step.of(module, inputs, kwargs, taken, autocast)
    training = Training(optimizer, accumulate, clip)
    on = _card(device, training, step, dry)
    if on is not None:
        step = dataclasses.replace(step, place=place_on(on))
    chosen = modes_of(modes, None if policy is None else cast(Any, planned_by(step, policy)))
    failed = Failures(chosen)
    work = _dry(step, failed, progress) if dry or step.dry else _real(step, failed, rounds, progress)
    runs, input_bytes = zip(*work, strict=True)
    arguments, there = _arguments(step, max(input_bytes)), None if on is None else device_of(on)
    if any(run.mode == "full" for run in runs) and (on is not None or training.asked):
        tracker, optimizer_bytes = None, 0
        if on is not None:
            there, tracker, optimizer_bytes = trained_on(on, step, training)
            there = _with_plan(there, on, step, training, chosen)
        else:
            tracker, optimizer_bytes = trained_here(step, training)
        arguments = replace(arguments, optimizer_bytes=optimizer_bytes)
        runs = tuple(run if tracker is None or run.mode != "full" else _trained(tracker) for run in runs)
    report = Report(
        memback=__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine={**machine(), "torch": str(torch.__version__), "device": _device(step)},
        profile=_about(step, name_of_loss(), about or {}),
        arguments=arguments,
        runs=runs,
        distributed=_distributed(step),
        not_run={str(mode): why for mode, why in failed.reasons.items()},
        device=there,
    )
    report.validate()
    return report


def _with_plan(there: Device, on: Card, step: Step, training: Training, modes: Sequence[Mode]) -> Device:
    """A device with what a steady step takes there under the plan of one of the modes, if there is one."""
    plan = next((cast(Any, mode.policy) for mode in modes if mode.policy is not None), None)
    if plan is None:
        return there
    with plan.apply(step.module):
        return replace(there, planned=trained_on(on, step, training, watch=False)[0].steady)


class DryRunWarning(UserWarning):
    """A dry run's figures are too low."""


class WatchingWarning(UserWarning):
    """A watched step takes more than the same one does unwatched."""


class Failures:
    """Modes of a report, and why those can't be run that it can do without: the others stay in it."""

    def __init__(self, modes: Sequence[Mode]) -> None:
        self.modes = modes
        self.reasons: dict[Mode, str] = {}

    def tried(self, mode: Mode, run: Callable[[Mode], _T]) -> _T | None:
        """What a run of a mode gives; None where it goes wrong, which is noted if another mode is left."""
        if mode in self.reasons:
            return None
        try:
            return run(mode)
        except UsageError:
            raise
        except Exception as error:
            needed = mode.name in ("full", "checkpoint") or all(m in self.reasons for m in self.modes if m != mode)
            if needed:
                raise
            self.reasons[mode] = str(error) if isinstance(error, MembackError) else described(error)
            return None


def _trained(tracker: Tracker) -> Run:
    """Mode ``full`` with the update."""
    run = run_of(Mode("full", None), tracker, tracker.peak.bytes, tracker.peak)
    return replace(run, **left_of(tracker))


def _card(device: str | None, training: Training, step: Step, dry: bool) -> Card | None:
    """The card that is predicted for, if one is.

    Raises:
        UsageError: it is not known, or the step is not one that can be predicted for a card.
    """
    training.check()
    if training.asked and not (dry or step.dry):
        raise UsageError(
            "optimizer=, accumulate= and clip= belong to a dry run: give dry=True, too, or take profile_step"
        )
    if device is None:
        return None
    named = card(device)
    if not (dry or step.dry):
        raise UsageError(f"device={device!r} predicts for a card that need not be there: give dry=True, too")
    if step.strategy is not None:
        raise UsageError("device= predicts for one process: take the module without DDP or FSDP")
    return named


def _check(module: torch.nn.Module) -> None:
    """Refuse what would give figures that are not the module's own."""
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{module!r:.80} is no torch.nn.Module")
    check_all_visible(module)
    lazy = [name for name, tensor in module.named_parameters() if torch.nn.parameter.is_lazy(tensor)]
    if lazy:
        raise UsageError(f"parameter {lazy[0]} has no shape yet: call the module once before it is profiled")


def _dry(step: Step, failed: Failures, progress: Progress) -> list[tuple[Run, int]]:
    """Every mode's run, and the bytes of its inputs."""
    runs, unknown = [], set()
    for done, mode in enumerate(failed.modes):
        progress(f"dry run of {mode}", done, len(failed.modes))
        if (tracker := failed.tried(mode, step.predict)) is not None:
            unknown |= tracker.unknown
            run = run_of(mode, tracker, tracker.peak.bytes, tracker.peak)
            runs.append((replace(run, **left_of(tracker)), tracker.input_bytes))
    warn_of_unknown(unknown, 5)
    return runs


def warn_of_unknown(unknown: set[str], level: int) -> None:
    """Warn of what a dry run does not know the size of."""
    if unknown:
        what = "; ".join(sorted(unknown))
        warnings.warn(f"A dry run does not know the size of {what}: its figures are too low", DryRunWarning, level)


def left_of(tracker: Tracker) -> dict[str, Any]:
    """What a step leaves behind, for its run."""
    makers = sorted(tracker.left, key=lambda maker: -tracker.left[maker])
    return {"left_bytes": sum(tracker.left.values()), "left": tuple(makers)}


def _real(step: Step, failed: Failures, rounds: int, progress: Progress) -> list[tuple[Run, int]]:
    """As :func:`_dry`."""
    modes = failed.modes
    total, done = len(modes) * 3 + sum(mode.name != "retain-all" for mode in modes) * rounds, 0
    times: dict[Mode, list[Seconds]] = {mode: [] for mode in modes}
    runs = []

    def tell(what: str) -> None:
        nonlocal done
        progress(what, done, total)
        done += 1

    unwatched = [mode for mode in modes if mode.name != "retain-all"]  # which is what the tracker does
    for _ in range(rounds):
        for mode in unwatched:
            tell(f"time of {mode}")
            if (taken := failed.tried(mode, step.time)) is not None:
                times[mode].append(taken)
    for mode in modes:
        tell(f"memory given out in {mode}")
        allocated = failed.tried(mode, step.allocated) if mode in unwatched else None
        tell(f"account of {mode}")
        if (account := failed.tried(mode, step.account)) is None:
            continue
        tell(f"dry run of {mode}")
        prediction = _prediction(step, mode)
        _warn_of_watching(mode, account.tracker.peak.bytes, allocated)
        tracker, peak = account.tracker, account.tracker.peak if prediction is None else prediction
        run = replace(
            run_of(mode, tracker, None if prediction is None else prediction.bytes, peak),
            measured_peak_bytes=tracker.peak.bytes,
            rss_peak_bytes=account.rss_growth,
            allocator_peak_bytes=None if allocated is None else allocated.peak_bytes,
            reserved_peak_bytes=None if allocated is None else allocated.reserved_bytes,
            seconds=plain.Seconds(**vars(median(times[mode]))) if times[mode] else None,
            steps_timed=len(times[mode]),
            loss=account.loss,
            gradient_sha256=account.gradient_sha256,
            **left_of(tracker),
        )
        runs.append((run, tracker.input_bytes))
    return runs


_SLACK = 1024
"""Bytes that a watched step may hold more without a warning: a few numbers, such as a loss."""


def _warn_of_watching(mode: Mode, measured: int, given_out: Allocated | None) -> None:
    if given_out is not None and measured > given_out.peak_bytes * 1.01 + _SLACK:
        warnings.warn(
            f"Mode {mode} held {measured:,} B at its peak while it was watched, and {given_out.peak_bytes:,} B while it"
            " was not, so that an unwatched step takes less: of some ops (prod, cumprod, max and median of a whole"
            " tensor, masked_fill with a tensor) PyTorch takes another derivative while it is watched, and it copies"
            " sparse gradients",
            WatchingWarning,
            5,
        )


def _prediction(step: Step, mode: Mode) -> Peak | None:
    try:
        tracker = step.predict(mode)
    except DryRunError:
        return None
    return None if tracker.unknown else tracker.peak


def _arguments(step: Step, input_bytes: int) -> plain.Arguments:
    parameters = list(step.module.parameters())
    shards = [param.sharded_param for param in fsdp_params(step.module)]
    apart = {id(shard) for shard in shards}
    return plain.Arguments(
        parameter_bytes=distinct_bytes(param for param in parameters if id(param) not in apart),
        sharded_parameter_bytes=distinct_bytes(shards),
        bucket_bytes=bucket_bytes(step.module),
        buffer_bytes=distinct_bytes(step.module.buffers()),
        input_bytes=input_bytes,
    )


def _distributed(step: Step) -> plain.Distributed | None:
    if step.strategy is None:
        return None
    return plain.Distributed(
        strategy=step.strategy,
        backend=torch.distributed.get_backend(),
        world_size=torch.distributed.get_world_size(),
        rank=torch.distributed.get_rank(),
        gradient_as_bucket_view=getattr(step.module, "gradient_as_bucket_view", False),
    )


def _about(step: Step, loss: str, given: Mapping[str, Any]) -> plain.Profile:
    """What was run: what is ``given`` goes before what the step says itself."""
    dtypes = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in step.module.parameters())
    module = step.module.module if isinstance(step.module, DistributedDataParallel) else step.module
    name = type(module).__name__.removeprefix("FSDP" if step.strategy == "fsdp2" else "")
    own: dict[str, Any] = {"name": name, "dtype": ", ".join(dtypes)}
    model = {"name": name, "training": _training(module), **given.get("model", {})}
    data = {"loss": loss, **given.get("data", {})}
    if step.autocast is not None:
        data.setdefault("autocast", str(step.autocast).removeprefix("torch."))
    return plain.Profile(**{**own, **given, "model": model, "data": data})


def _training(module: torch.nn.Module) -> bool | str:
    """Whether the module is in training mode; ``"mixed"`` where some of its parts are and others are not."""
    flags = {part.training for part in module.modules()}
    return flags.pop() if len(flags) == 1 else "mixed"


def _device(step: Step) -> str:
    return torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else step.device.type
