"""``memback.bridges.torch.profile``: a training step of a PyTorch module in several modes, as one report."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from memback._version import __version__
from memback.bridges.torch.step import Account, Loss, Step, sum_of_outputs
from memback.bridges.torch.storages import distinct_bytes
from memback.bridges.torch.tracking import Tracker
from memback.profiling import report as plain
from memback.profiling.passes import Mode, Seconds, median
from memback.profiling.report import Report, Run
from memback.profiling.run import machine, modes_of, run_of

__all__ = ["profile"]

Progress = Callable[[str, int, int], None]


def profile(
    module: torch.nn.Module,
    *inputs: Any,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    modes: Sequence[str] = ("full", "inference"),
    dry: bool = False,
    autocast: torch.dtype | None = None,
    rounds: int = 3,
    about: Mapping[str, Any] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Report:
    """Run a training step of a module in several modes and report the memory of each, op by op.

    Args:
        module: any module, as it is: on a CPU or CUDA, in training mode or not, with parts frozen or tied or under
            ``torch.utils.checkpoint``. Parameters, buffers, gradients and random streams are afterwards as before.
        inputs: what it is called with: tensors of any shape and dtype, and anything else.
        loss: gives the loss, a tensor of one number, from what the module gives; by default the sum of its numbers.
        kwargs: what it is called with by name.
        modes: of ``full`` and ``inference``.
        dry: whether to predict only: nothing is allocated or run. So it is, too, where parameters or inputs hold no
            memory (fake tensors, the device ``meta``).
        autocast: the dtype of automatic mixed precision in the forward pass.
        rounds: how often each mode is timed; the median is reported.
        about: what the report says of the profile (``name``, ``model``, ``data``, ``dtype``).
        progress: called with (what is done now, steps done, steps in all).

    Returns:
        the :class:`~memback.profiling.report.Report`; sizes in bytes, times in seconds. FLOPs are those of products of
        matrices, convolutions and attention. Measured is the peak of the storages that PyTorch makes.

    Raises:
        UsageError: an unknown mode, or a loss that is none.
        MembackError: a dry run of a step that takes decisions on values.
    """
    step = Step(module, inputs, kwargs or {}, loss, autocast)
    chosen = modes_of(modes, None)
    runs = _dry(step, chosen, progress) if dry or step.dry else _real(step, chosen, rounds, progress)
    report = Report(
        memback=__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine={**machine(), "torch": torch.__version__, "device": _device(step)},
        profile=plain.Profile(**{**_about(step), **(about or {})}),
        arguments=_arguments(step),
        runs=tuple(runs),
    )
    report.validate()
    return report


def _dry(step: Step, modes: Sequence[Mode], progress: Progress) -> list[Run]:
    runs = []
    for done, mode in enumerate(modes):
        progress(f"dry run of {mode}", done, len(modes))
        runs.append(_run(mode, step.predict(mode), predicted=True))
    return runs


def _real(step: Step, modes: Sequence[Mode], rounds: int, progress: Progress) -> list[Run]:
    total, done = len(modes) * (2 + rounds), 0
    times: dict[Mode, list[Seconds]] = {mode: [] for mode in modes}
    accounts: dict[Mode, Account] = {}

    def tell(what: str) -> None:
        nonlocal done
        progress(what, done, total)
        done += 1

    for _ in range(rounds):
        for mode in modes:
            tell(f"time of {mode}")
            times[mode].append(step.time(mode))
    for mode in modes:
        tell(f"account of {mode}")
        accounts[mode] = step.account(mode)
    runs = []
    for mode in modes:
        tell(f"dry run of {mode}")
        account, prediction = accounts[mode], step.predict(mode)
        runs.append(
            replace(
                _run(mode, account.tracker, predicted=False),
                predicted_peak_bytes=prediction.peak.bytes,
                peak=_run(mode, prediction, predicted=True).peak,
                measured_peak_bytes=account.tracker.peak.bytes,
                rss_peak_bytes=account.rss_growth,
                seconds=plain.Seconds(**vars(median(times[mode]))) if rounds else None,
                steps_timed=rounds,
                loss=account.loss,
                gradient_sha256=account.gradient_sha256,
            )
        )
    return runs


def _run(mode: Mode, tracker: Tracker, predicted: bool) -> Run:
    return run_of(mode, tracker, tracker.peak.bytes if predicted else None, tracker.peak)


def _arguments(step: Step) -> plain.Arguments:
    return plain.Arguments(
        parameter_bytes=distinct_bytes(step.module.parameters()),
        buffer_bytes=distinct_bytes(step.module.buffers()),
        input_bytes=distinct_bytes((step.args, dict(step.kwargs))),
    )


def _about(step: Step) -> dict[str, Any]:
    dtypes = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in step.module.parameters())
    name = type(step.module).__name__
    return {"name": name, "model": {"name": name}, "data": {}, "dtype": ", ".join(dtypes)}


def _device(step: Step) -> str:
    return torch.cuda.get_device_name(step.device) if step.device.type == "cuda" else step.device.type
