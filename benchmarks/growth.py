"""How peak and time grow with depth and with the batch, in each mode, beside theory.

A chain of equal layers with frozen weights, of which only the activations' memory grows: gradients of weights take the
same memory in every mode and would hide it. Peaks are predicted (exactly; the tests hold predictions against what is
measured), so that no depth is too deep; a few times are taken on real arrays.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import memback as mb
from benchmarks.charts import lines
from memback.nn.policy import applied
from memback.plans import Stage, revolve

DEPTHS = (8, 16, 32, 64, 128, 256, 512)
TIMED = (8, 16, 32, 64, 128)
BATCHES = (64, 256, 1024, 4096)
WIDTH, BATCH, DEPTH = 64, 1024, 64

MODES: dict[str, tuple[str, str | None]] = {
    "full": ("full", None),
    "sqrt": ("checkpoint", "sqrt"),
    "inference": ("inference", None),
}
THEORY = {
    "full": "n, slope 1",
    "sqrt": "2 sqrt(n), slope 1/2",
    "revolve": "log2(n): the same number of bytes more for each doubling",
    "inference": "constant, slope 0",
}


def _model(depth: int) -> Any:
    model = mb.models.MLP(WIDTH, WIDTH, width=WIDTH, depth=depth, objective="sqerr")
    model.requires_grad_(False)
    return model


def _peaks(depth: int, batch: int) -> dict[str, int]:
    """Predicted peaks in bytes."""
    with mb.dry_run():
        model = _model(depth)
        x = mb.Tensor(mb.ShapeArray.argument((batch, WIDTH)), requires_grad=True)
        y = mb.ShapeArray.argument((batch, WIDTH))
        peaks = {}
        for name, (mode, policy) in MODES.items():
            run = mb.profile(model, step=lambda: model.loss(x, y), modes=(mode,), policy=policy).runs[0]
            peaks[name] = int(run.predicted_peak_bytes or 0)
    return peaks | {"revolve": _revolve(depth, batch)}


def _revolve(depth: int, batch: int) -> int:
    """Peak of the optimal schedule with log2(n) slots, from one layer's sizes, by the planners' simulator."""
    size = batch * WIDTH * 4
    layer = Stage(1, 2, size, forward_workspace=size, backward_workspace=size)
    return revolve.schedule(depth, _slots(depth), layer, size).peak_bytes


def _slots(depth: int) -> int:
    return math.ceil(math.log2(depth))


def _seconds(depth: int, batch: int, rounds: int) -> dict[str, float]:
    """Processor seconds of a step, medians of interleaved rounds."""
    model = _model(depth)
    rng = np.random.default_rng(1)
    x = mb.Tensor(rng.standard_normal((batch, WIDTH), np.float32), requires_grad=True)
    y = rng.standard_normal((batch, WIDTH), np.float32)
    taken: dict[str, list[float]] = {name: [] for name in MODES}
    for _ in range(rounds + 1):
        for name, (mode, policy) in MODES.items():
            taken[name].append(_timed(lambda mode=mode, policy=policy: _run(model, x, y, mode, policy)))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def _run(model: Any, x: Any, y: Any, mode: str, policy: str | None) -> None:
    x.grad = None
    if mode == "inference":
        with mb.no_grad():
            model.loss(x, y)
        return
    with applied(model, policy):
        loss = model.loss(x, y)
    loss.backward()


def _timed(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def measure(rounds: int) -> dict[str, Any]:
    """Peaks and times by depth, and by batch."""
    mb.keep_freed_memory()
    return {
        "depth": {str(n): _peaks(n, BATCH) for n in DEPTHS},
        "batch": {str(b): _peaks(DEPTH, b) for b in BATCHES},
        "seconds_by_depth": {str(n): _seconds(n, BATCH, rounds) for n in TIMED},
        "seconds_by_batch": {str(b): _seconds(DEPTH, b, rounds) for b in BATCHES},
    }


def _slope(points: dict[str, Any], name: str) -> float:
    """Of the logarithm, over the last doubling or more: 1 is linear, 1/2 a square root, 0 constant."""
    (a, low), (b, high) = list(points.items())[-2:]
    return math.log(high[name] / low[name]) / math.log(int(b) / int(a))


def section(data: dict[str, Any]) -> str:
    """The tables."""
    out = ["## Growth", "", *(__doc__ or "").strip().splitlines()[2:], "", "![Peak by depth](growth.svg)", ""]
    names = [*MODES, "revolve"]
    out += [
        f"Predicted peak in MiB by depth: width {WIDTH}, batch {BATCH}, float32. *revolve* has log2(n) slots.",
        "",
        f"| mode | {' | '.join(data['depth'])} | slope at the end | theory |",
        f"|---|{'---:|' * len(data['depth'])}---:|---|",
    ]
    for name in sorted(names, key=list(THEORY).index):
        peaks = " | ".join(f"{row[name] / 2**20:.2f}" for row in data["depth"].values())
        out.append(f"| {name} | {peaks} | {_slope(data['depth'], name):.2f} | {THEORY[name]} |")
    out += ["", *_table("Predicted peak in MiB by batch", data["batch"], names, 2**20, f"depth {DEPTH}")]
    out += _table(
        "Milliseconds of the processor by depth", data["seconds_by_depth"], list(MODES), 1e-3, f"batch {BATCH}"
    )
    out += _table(
        "Milliseconds of the processor by batch", data["seconds_by_batch"], list(MODES), 1e-3, f"depth {DEPTH}"
    )
    return "\n".join(out)


def _table(title: str, rows: dict[str, Any], names: list[str], unit: float, fixed: str) -> list[str]:
    out = [
        f"{title}: width {WIDTH}, {fixed}; theory: linear, slope 1.",
        "",
        f"| mode | {' | '.join(rows)} | slope at the end |",
        f"|---|{'---:|' * len(rows)}---:|",
    ]
    for name in names:
        values = " | ".join(f"{row[name] / unit:.2f}" for row in rows.values())
        out.append(f"| {name} | {values} | {_slope(rows, name):.2f} |")
    return [*out, ""]


def chart(data: dict[str, Any]) -> str:
    """Peak by depth."""
    series = {name: [(float(n), row[name] / 2**20) for n, row in data["depth"].items()] for name in (*MODES, "revolve")}
    return lines("Peak of a step by depth", ("layers", "MiB"), series)
