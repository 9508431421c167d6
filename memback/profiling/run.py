"""``mb.profile``: a training step in several modes, as one report."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import psutil
from msgspec.structs import replace

from memback._version import __version__
from memback.dry.array import NoValuesError
from memback.engine.arrays import distinct_bytes
from memback.engine.state import current
from memback.engine.tensor import Tensor
from memback.nn.policy import PlanLike
from memback.ops import compiled
from memback.profiling import report as plain
from memback.profiling.accounts import Accounts, Row
from memback.profiling.calling import module_first, step_of
from memback.profiling.measuring import Observation, Peak, Prediction, Seconds, median
from memback.profiling.mode import Mode
from memback.profiling.precision import floating_dtypes, warn_of_wider_values
from memback.profiling.report import Report, Run
from memback.profiling.step import Step

if TYPE_CHECKING:
    from memback.nn.module import Module
    from memback.optim import Optimizer

__all__ = ["machine", "modes_of", "profile", "run_of"]


@module_first
def profile(
    module: Module | None = None,
    *inputs: Any,
    step: Callable[[], Tensor] | None = None,
    modes: Sequence[str] = ("retain-all", "full", "inference"),
    policy: str | PlanLike | None = None,
    optimizer: Optimizer | None = None,
    rounds: int = 3,
    predict: bool = True,
    about: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Report:
    """Run a training step in several modes and report the memory of each, layer by layer.

    Args:
        module: the model, whose gradients, buffers and random stream are afterwards as they were before.
        *inputs: what it is called with, where there is no step.
        step: runs forward and returns the scalar loss as a Tensor; the profile runs backward. It must do the same
            each time; memback's own random stream is set back for it. By default it is the sum of the module's output.
        modes: of ``retain-all``, ``full``, ``checkpoint``, ``inference``; a policy adds ``checkpoint``.
        policy: the checkpoint policy, such as ``"sqrt"``, or a plan that :func:`memback.plan` made. Without one, mode
            ``checkpoint`` leaves the checkpoints as the model itself has them (its report says ``"own"``). The other
            modes run without checkpoints.
        optimizer: whose update ends the step, and whose state counts as training memory.
        rounds: how often each mode is timed; the median is reported.
        predict: whether to predict each mode by a dry run, beside the measurement.
        about: what the report says of the profile (``name``, ``model``, ``data``, ``sha256``). Its ``dtype`` is what
            the step has computed in: all floating-point dtypes that ops gave.
        progress: called with (what is done now, steps done, steps in all).

    Inside ``with mb.dry_run():`` nothing is run for real: predictions alone are reported.

    Warns (:class:`memback.PrecisionWarning`), once, where values are wider than the parameters, as those computed from
    a float64 input are, and where gradients of weights are subnormal, as a real run of the first mode with gradients
    shows.

    Returns:
        the :class:`~memback.profiling.report.Report`; all sizes in bytes, times in seconds.

    Raises:
        UsageError: an unknown mode or policy; a step that returns no scalar loss; both inputs and a step, or nothing
            to run.
        MembackError: tracemalloc is in use already.
    """
    chosen = modes_of(modes, policy)
    step = step_of(module, inputs, step)
    repeatable = Step(step, module, optimizer)
    work = _Dry(repeatable) if current().dry else _Real(repeatable, rounds, predict)
    runs = work.runs(chosen, progress)
    warn_of_wider_values(work.rows, () if module is None else module.parameters(), stacklevel=3)
    report = Report(
        memback=__version__,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=machine(),
        profile=plain.Profile(**{**_about(step, module), **(about or {}), **_computed_in(work.rows)}),
        arguments=_arguments(module, optimizer, work.input_bytes),
        runs=tuple(runs),
    )
    report.validate()
    return report


def modes_of(modes: Sequence[str], policy: str | PlanLike | None) -> list[Mode]:
    """The modes to run, each with its policy; ``checkpoint`` comes before ``inference`` where it is only implied.

    Raises:
        UsageError: an unknown mode.
    """
    names = list(dict.fromkeys(modes))
    if policy is not None and "checkpoint" not in names:
        names.insert(names.index("inference") if "inference" in names else len(names), "checkpoint")
    return [Mode(name, policy if name == "checkpoint" else None) for name in names]


class _Dry:
    """Every mode on arrays without memory."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.input_bytes = 0
        self.rows: Sequence[Row] = ()

    def runs(self, modes: Sequence[Mode], progress: Callable[[str, int, int], None]) -> list[Run]:
        runs = []
        for done, mode in enumerate(modes):
            progress(f"dry run of {mode}", done, len(modes))
            prediction = self.step.predict(mode)
            self.input_bytes = prediction.ledger.input_bytes
            self.rows = prediction.ledger.rows
            runs.append(run_of(mode, prediction.ledger, prediction.peak.bytes, prediction.peak))
        return runs


class _Real:
    """Every mode for real, with a prediction beside it. Timed runs of the modes take turns: machines are noisy."""

    def __init__(self, step: Step, rounds: int, predict: bool) -> None:
        self.step = step
        self.rounds = rounds
        self.predict = predict
        self.input_bytes = 0
        self.rows: Sequence[Row] = ()

    def runs(self, modes: Sequence[Mode], progress: Callable[[str, int, int], None]) -> list[Run]:
        total = len(modes) * (3 + self.rounds)
        done = 0

        def tell(what: str) -> None:
            nonlocal done
            progress(what, done, total)
            done += 1

        accounts: dict[Mode, Observation] = {}
        times: dict[Mode, list[Seconds]] = {mode: [] for mode in modes}
        runs = []
        for mode in modes:
            tell(f"account of {mode}")
            accounts[mode] = self.step.account(mode)
        for _ in range(self.rounds):
            for mode in modes:
                tell(f"time of {mode}")
                times[mode].append(self.step.time(mode))
        for mode in modes:
            tell(f"peak of {mode}")
            measured, bookkeeping = self.step.measure(mode, accounts[mode].ledger)
            tell(f"dry run of {mode}")
            prediction = self._prediction(mode)
            ledger = accounts[mode].ledger
            self.input_bytes = max(self.input_bytes, ledger.input_bytes)
            self.rows = ledger.rows
            peak = measured if prediction is None else prediction.peak
            run = run_of(mode, ledger, None if prediction is None else prediction.peak.bytes, peak)
            runs.append(
                replace(
                    run,
                    measured_peak_bytes=measured.bytes,
                    bookkeeping_bytes=bookkeeping,
                    rss_peak_bytes=accounts[mode].rss_growth,
                    seconds=plain.Seconds(**vars(median(times[mode]))) if times[mode] else None,
                    steps_timed=len(times[mode]),
                    loss=accounts[mode].loss,
                    gradient_sha256=accounts[mode].gradient_sha256,
                )
            )
        return runs

    def _prediction(self, mode: Mode) -> Prediction | None:
        if not self.predict:
            return None
        try:
            return self.step.predict(mode)
        except NoValuesError:
            return None


def run_of(mode: Mode, ledger: Accounts, predicted_peak_bytes: int | None, peak: Peak) -> Run:
    """A mode's step as a report has it, from its ledger; what was not measured is None."""
    return Run(
        mode=cast(Any, mode.name),  # Mode has checked it
        policy=(mode.policy_name or "own") if mode.name == "checkpoint" else None,
        saved_bytes=ledger.saved_at_end_of_forward or 0,
        gradient_bytes=ledger.parameter_gradient_bytes,
        predicted_peak_bytes=predicted_peak_bytes,
        measured_peak_bytes=None,
        rss_peak_bytes=None,
        seconds=None,
        flops=ledger.flops,
        recomputed_flops=ledger.recomputed_flops,
        loss=None,
        gradient_sha256=None,
        peak=plain.Peak(**cast(Any, peak.to_dict())),
        layers=tuple(map(_layer, ledger.rows)),
        timeline=tuple(plain.Event(*event) for event in ledger.events),
        buffers=tuple(ledger.buffers),
    )


_OF_ROW = tuple(name for name in plain.Layer.__struct_fields__ if name not in ("saved", "count"))
"""What a layer of a report has of a row as the row has it."""


def _layer(row: Row) -> plain.Layer:
    saved = tuple(plain.SavedValue(**value._asdict()) for value in row.saved)
    return plain.Layer(**{name: getattr(row, name) for name in _OF_ROW}, saved=saved)


def _arguments(module: Module | None, optimizer: Optimizer | None, input_bytes: int) -> plain.Arguments:
    parameters = [] if module is None else [p.data for p in module.parameters()]
    buffers = [] if module is None else [array for _, array in module.named_buffers()]
    return plain.Arguments(
        parameter_bytes=distinct_bytes(parameters),
        buffer_bytes=distinct_bytes(buffers),
        input_bytes=input_bytes,
        optimizer_bytes=0 if optimizer is None else optimizer.state_bytes,
    )


def _about(step: Callable[[], Tensor], module: Module | None) -> dict[str, Any]:
    return {
        "name": getattr(step, "__name__", "step"),
        "model": {} if module is None else {"name": type(module).__name__},
        "data": {},
        "dtype": "",
    }


def _computed_in(rows: Sequence[Row]) -> dict[str, str]:
    dtypes = floating_dtypes(rows)
    return {"dtype": ", ".join(dtypes)} if dtypes else {}


def machine() -> dict[str, Any]:
    """The machine, as a report describes it."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "compiled_kernels": compiled.in_use(),
    }
