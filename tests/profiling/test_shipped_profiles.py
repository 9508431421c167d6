"""Every shipped profile that runs for real, in every mode: the numbers are held against each other and tracemalloc."""

from __future__ import annotations

import functools
import gc
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest

from memback.engine.node import Node
from memback.engine.observer import Observer
from memback.engine.op import Op
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor
from memback.nn.policy import applied
from memback.profiling.definition import load, shipped
from memback.profiling.mode import MODES, Mode
from memback.profiling.report import Report, Run
from memback.profiling.run import profile
from memback.profiling.step import Step, dry_arguments
from memback.profiling.workload import Workload

SMALLER = {"long-context": {"data.sequence": "2048"}, "source-gpt": {"data.batch": "4"}}
"""A step of the profile as it is shipped takes more than a second under tracemalloc, or is taken in many modes."""

POLICIES = ("none", "every:2", "sqrt", "all", "selective")
PATTERNS = {"source-gpt": "match:blocks.*.mlp"}

NAMES = [name for name in shipped() if not load(name).dry]
QUICK = {"digits", "notes", "source-gpt"}
"""Profiles that are held whenever the tests run; the others take minutes together."""
PLAIN = [Mode(name) for name in MODES if name != "checkpoint"]
CASES = [
    pytest.param(name, mode, id=f"{name}-{mode}", marks=() if name in QUICK else pytest.mark.long)
    for name in NAMES
    for mode in (
        *PLAIN,
        *(Mode("checkpoint", policy) for policy in POLICIES),
        *(Mode("checkpoint", policy) for key, policy in PATTERNS.items() if key == name),
    )
]


@dataclass(frozen=True)
class Watched:
    """One mode of a profile: its run in a report, and what a dry run said and counted."""

    report: Report
    run: Run
    predicted_saved_bytes: int | None
    op_calls: int


class _Calls(Observer):
    """Counts recorded calls: of ops, those of a recomputation too, and of checkpoints."""

    def __init__(self) -> None:
        self.count = 0

    def forward_begins(self, op: Op) -> None:
        self.count += 1

    def held(self, node: Node) -> None:
        self.count += 1


@functools.cache
def workload(name: str) -> Workload:
    return Workload.build(load(name).with_overrides(SMALLER.get(name, {})))


def step(name: str) -> Step:
    work = workload(name)
    x, y = work.batch(0)
    return Step(lambda: work.loss(x, y), work.model, work.optimizer)


@functools.cache
def watched(name: str, mode: Mode) -> Watched:
    work, repeatable = workload(name), step(name)
    report = profile(
        work.model,
        step=repeatable.function,
        modes=[mode.name],
        policy=mode.policy,
        optimizer=work.optimizer,
        rounds=0,
        about=work.about(),
    )
    calls = _Calls()
    with dry_arguments(work.model, work.optimizer), repeatable.unchanged():
        repeatable.run(mode, calls)
    predicted = repeatable.predict(mode).ledger.saved_at_end_of_forward
    return Watched(report, report.runs[0], predicted, calls.count)


def allowed(size: int) -> float:
    """How far a figure of bytes may be from another: 1 % and 64 KiB."""
    return size / 100 + 64 * 1024


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_mode_changes_a_bit_of_the_gradients_or_the_loss(name: str, mode: Mode) -> None:
    full, run = watched(name, Mode("full")).run, watched(name, mode).run
    assert run.loss == full.loss
    assert full.gradient_sha256 is not None
    assert run.gradient_sha256 == (full.gradient_sha256 if mode.trains else None)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_saved_bytes_are_predicted_to_the_byte(name: str, mode: Mode) -> None:
    found = watched(name, mode)
    assert found.predicted_saved_bytes == found.run.saved_bytes
    assert (found.run.saved_bytes == 0) == (not mode.trains)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_peak_is_predicted_as_it_is_measured(name: str, mode: Mode) -> None:
    run = watched(name, mode).run
    assert run.predicted_peak_bytes is not None
    assert run.measured_peak_bytes is not None
    assert abs(run.predicted_peak_bytes - run.measured_peak_bytes) <= allowed(run.measured_peak_bytes)


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_bookkeeping_is_at_most_2_kib_an_op_call(name: str, mode: Mode) -> None:
    found = watched(name, mode)
    assert found.run.bookkeeping_bytes is not None
    assert 0 <= found.run.bookkeeping_bytes <= 2048 * found.op_calls


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_rows_sum_to_the_totals(name: str, mode: Mode) -> None:
    found = watched(name, mode)
    found.report.validate()
    assert sum(layer.saved_bytes for layer in found.run.layers) == found.run.saved_bytes
    assert sum(layer.flops for layer in found.run.layers) == found.run.flops
    assert found.run.peak.total_bytes == found.run.predicted_peak_bytes


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_recomputation_never_costs_more_than_another_forward_pass(name: str, mode: Mode) -> None:
    full, run = watched(name, Mode("full")).run, watched(name, mode).run
    assert run.flops == full.flops
    assert 0 <= run.recomputed_flops <= run.flops
    if mode.policy in (None, "none"):
        assert run.recomputed_flops == 0


@pytest.mark.parametrize(("name", "mode"), [case for case in CASES if case.values[1].trains])
def test_what_is_accounted_as_saved_disappears_when_the_tape_is_cleared(name: str, mode: Mode) -> None:
    repeatable = step(name)
    with repeatable.unchanged():
        gc.collect()
        tracemalloc.start()
        try:
            loss, before, after = _forward_and_clear(name, mode, repeatable)
        finally:
            tracemalloc.stop()
    assert np.isfinite(loss.data)
    saved = watched(name, mode).run.saved_bytes
    assert abs((before - after) - saved) <= allowed(saved)


def _forward_and_clear(name: str, mode: Mode, repeatable: Step) -> tuple[Tensor, int, int]:
    with applied(workload(name).model, mode.policy):
        with Tape("all" if mode.name == "retain-all" else "needed") as tape:
            loss = repeatable.function()
        before = _traced_arrays()
        tape.clear()
        return loss, before, _traced_arrays()


def _traced_arrays() -> int:
    traces = tracemalloc.take_snapshot().traces
    return sum(trace.size for trace in traces if trace.domain == np.lib.tracemalloc_domain)


def test_inference_on_deep_mlp_peaks_at_least_ten_times_below_full_retention() -> None:
    full, inference = (step("deep-mlp").predict(Mode(name)).peak.bytes for name in ("full", "inference"))
    assert 10 * inference <= full


@pytest.mark.long
def test_sqrt_on_deep_mlp_holds_at_most_a_quarter_of_full_retention() -> None:
    full, sqrt = (watched("deep-mlp", mode).run.saved_bytes for mode in (Mode("full"), Mode("checkpoint", "sqrt")))
    assert 4 * sqrt <= full


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in NAMES])
def test_modes_are_ordered_from_the_most_memory_to_the_least(name: str) -> None:
    everything, full, inference = (watched(name, mode).run.saved_bytes for mode in PLAIN)
    assert everything > full > inference == 0
    for policy in ("every:2", "sqrt"):
        assert watched(name, Mode("checkpoint", policy)).run.saved_bytes <= full


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["digits", "source-gpt", "lstm"])
def test_a_profile_in_another_dtype_keeps_it_throughout_and_is_predicted(name: str, dtype: str) -> None:
    smaller = {"data.batch": "2", **({} if name == "digits" else {"data.sequence": "16"})}
    work = Workload.build(load(name).with_overrides({"dtype": dtype, **smaller}))
    x, y = work.batch(0)
    run = profile(work.model, step=lambda: work.loss(x, y), modes=["full"], rounds=0).runs[0]
    assert {layer.dtype for layer in run.layers} == {dtype}
    repeatable = Step(lambda: work.loss(x, y), work.model)
    assert repeatable.predict(Mode("full")).ledger.saved_at_end_of_forward == run.saved_bytes
    assert run.predicted_peak_bytes is not None
    assert run.measured_peak_bytes is not None
    assert abs(run.predicted_peak_bytes - run.measured_peak_bytes) <= allowed(run.measured_peak_bytes)
