"""What memback's own features cost on the same workloads: watching, recomputation; and what a step's peak is made of.

All in one process, in turns: what is compared runs in the same rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import memback as mb
from benchmarks.engines.memback import make_model
from benchmarks.pinning import pinned
from benchmarks.workloads import WORKLOADS, Workload
from memback.engine.node import Edge, Node
from memback.engine.observer import Observer
from memback.engine.state import current
from memback.engine.tensor import Tensor
from memback.nn.policy import applied
from memback.profiling.ledger import Ledger

WATCHED = {"W1": 12, "W2": 6, "W3": 4}
"""How many times the usual number of rounds each is run: a few percent are to be seen, and its steps are short."""
CHECKPOINTS = {"W2 at batch 4096, `sqrt`": ("W2", 4096, "sqrt"), "W3, `all` (each block)": ("W3", None, "all")}


def _step(workload: Workload, policy: str | None = None) -> tuple[Any, Callable[[], Any]]:
    model = make_model(workload)
    x, y = workload.sample()

    def step() -> Any:
        model.zero_grad()
        with applied(model, policy):
            loss = model.loss(x, y)
        loss.backward()
        return loss

    return model, step


def _ratio(rounds: int, base: Callable[[], Any], other: Callable[[], Any]) -> float:
    """The median of the rounds' ratios, in seconds of the processor."""
    base(), other()
    ratios = []
    for i in range(rounds):
        taken = [0.0, 0.0]
        for which in ((0, 1), (1, 0))[i % 2]:
            began = time.process_time()
            (base, other)[which]()
            taken[which] = time.process_time() - began
        ratios.append(taken[1] / taken[0])
    return statistics.median(ratios)


def measure(rounds: int) -> dict[str, Any]:
    """Ratios and bytes."""
    mb.keep_freed_memory()
    _step(WORKLOADS["W1"])[1]()
    with pinned(2):
        data: dict[str, Any] = {"watching": _watching_all(rounds)}
        gc.collect()
        gc.freeze()
        data |= {
            "watching_frozen": _watching_all(rounds),
            "recomputing": {title: _recomputing(*which, rounds=rounds) for title, which in CHECKPOINTS.items()},
        }
        gc.unfreeze()
    mb.keep_freed_memory(False)
    data["memory"] = {name: _memory(WORKLOADS[name]) for name in ("W1", "W2", "W3")}
    return data


def _watching_all(rounds: int) -> dict[str, float]:
    return {name: _watching(WORKLOADS[name], times * rounds) for name, times in WATCHED.items()}


def _watching(workload: Workload, rounds: int) -> float:
    """A step under a ledger with its timeline, to the step alone."""
    _, step = _step(workload)

    def watched() -> None:
        state = current()
        ledger = state.observer = Ledger()
        try:
            step()
        finally:
            state.observer = None
        ledger.finish()

    return _ratio(rounds, step, watched)


def _recomputing(name: str, batch: int | None, policy: str, rounds: int) -> dict[str, float]:
    """Time of a checkpointed step to a full one, and the FLOPs' share."""
    workload = WORKLOADS[name]
    if batch is not None:
        workload = replace(workload, size=replace(workload.size, batch=batch))
    model, full = _step(workload)
    _, again = _step(workload, policy)
    counted = _flops(model, workload, policy)
    gc.collect()
    return {"time": _ratio(rounds, full, again) - 1, "flops": counted}


def _flops(model: Any, workload: Workload, policy: str) -> float:
    """Recomputed FLOPs as a share of forward and backward, a backward counting twice its forward."""
    x, y = workload.sample()
    with mb.dry_run():
        run = mb.profile(model, step=lambda: model.loss(x, y), modes=("checkpoint",), policy=policy).runs[0]
    return float(run.recomputed_flops / (3 * run.flops))


class _WorkingSet(Observer):
    """The largest gradient of an output with those of its inputs, without leaves', in bytes."""

    def __init__(self) -> None:
        self.largest = 0
        self._begun = 0

    def backward_begins(self, node: Node) -> None:
        grads = node.grad if isinstance(node.grad, list) else [node.grad]
        self._begun = sum(g.nbytes for g in grads if g is not None)

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        made = sum(e.grad.nbytes for e in edges if e is not None and not isinstance(e, Tensor))
        self.largest = max(self.largest, self._begun + made)


def _memory(workload: Workload) -> dict[str, int]:
    """The measured peak, and what it is compared with."""
    model, step = _step(workload)
    state = current()
    observer = state.observer = _WorkingSet()
    try:
        step()
    finally:
        state.observer = None
    model.zero_grad()
    x, y = workload.sample()
    run = mb.profile(model, step=lambda: model.loss(x, y), modes=("full",)).runs[0]
    gradients = sum(p.data.nbytes for p in model.parameters())
    return {
        "measured": int(run.measured_peak_bytes or 0),
        "predicted": int(run.predicted_peak_bytes or 0),
        "sum": gradients + int(run.saved_bytes) + observer.largest,
        "gradients": gradients,
        "saved": int(run.saved_bytes),
        "working_set": observer.largest,
    }


def section(data: dict[str, Any]) -> str:
    """The tables."""
    out = ["## What watching and recomputing cost", "", "Medians of interleaved steps, in time of the processor.", ""]
    out += ["| a step under a ledger, to the step alone | | frozen |", "|---|---:|---:|"]
    out += [
        f"| {name}: {WORKLOADS[name].title} | {ratio:.3f} | {data['watching_frozen'][name]:.3f} |"
        for name, ratio in data["watching"].items()
    ]
    out += [
        "",
        "*Frozen*: what was loaded before the first step was taken from the garbage collector (`gc.freeze`). A ledger"
        " makes some thousand objects a step, and so has Python look through all others more often, which takes the"
        " longer the more is loaded.",
    ]
    out += ["", "| checkpointed, to full retention | more time | recomputed FLOPs' share |", "|---|---:|---:|"]
    out += [f"| {title} | {row['time']:+.1%} | {row['flops']:.1%} |" for title, row in data["recomputing"].items()]
    out += [
        "",
        "## Memory",
        "",
        "The measured peak beside the sum of the parameters' gradients, what is saved, and the largest working set of"
        " one op (gradients of its output and inputs). It may stay below that sum: gradients come while what was"
        " saved goes. Exact bytes of arrays; all but the ratio in MiB.",
        "",
        "| | gradients | saved | working set | sum | predicted peak | measured peak | measured ÷ sum |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in data["memory"].items():
        parts = " | ".join(f"{row[key] / 2**20:.1f}" for key in _COLUMNS)
        out.append(f"| {name} | {parts} | {row['measured'] / row['sum']:.3f} |")
    return "\n".join([*out, ""])


_COLUMNS = ("gradients", "saved", "working_set", "sum", "predicted", "measured")
