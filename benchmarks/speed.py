"""How long a step takes in every engine: W1 to W4, gradients compared before anything is timed."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from benchmarks.charts import bars
from benchmarks.workloads import WORKLOADS, MLPSize, Workload

PRODUCTS = "products"
"""The lower bound of every engine on NumPy: no gradients come of it."""
ENGINES = (
    "by_hand",
    "by_hand+kept",
    "memback",
    "memback+kept",
    "memback+fast",
    "torch",
    "jax",
    "autograd",
    "mygrad",
    PRODUCTS,
)
NAMES = {
    "by_hand": "NumPy by hand",
    "by_hand+kept": "NumPy by hand, freed memory kept",
    "memback": "memback",
    "memback+kept": "memback, freed memory kept",
    "memback+fast": "memback, kept and compiled",
    "torch": "PyTorch eager",
    "jax": "JAX jit",
    "autograd": "autograd",
    "mygrad": "MyGrad",
    PRODUCTS: "NumPy's matrix products alone",
}
DISTURBED = 1.15
"""From how many times their least time on the matrix products alone, which are always the same, tell of a disturbance.

A virtual machine has times, of seconds or minutes, at which the same products take a third longer: all points to its
two cores sharing no cache then, so that what one has written reaches the other slowly. It hits engines that let one
thread work on what two have computed harder than those that split everything.
"""
TOLERANCE = 0.02
"""Largest difference of a parameter's gradient from the hand-written one, in L2 norm, as a fraction.

In W2 a few of its four million ReLUs are so near to zero that rounding decides about them.
"""


class Engine:
    """A worker process."""

    def __init__(self, engine: str, workload: str, threads: int) -> None:
        numbers = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        if threads == 1:
            numbers["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        self.name = engine
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", engine, workload],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **numbers},
        )

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def ask(self, line: str) -> Any:
        """Send a line, wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the worker of {self.name} ended; its message stands above")
        return json.loads(answer)


def measure(rounds: int, threads: int) -> dict[str, Any]:
    """Every workload: by engine the ratio to the hand-written one, milliseconds, and growth of the resident set."""
    return {
        "threads": threads,
        "rounds": rounds,
        "workloads": {n: _workload(w, rounds, threads) for n, w in WORKLOADS.items()},
    }


def _workload(workload: Workload, rounds: int, threads: int) -> dict[str, Any]:
    engines = [Engine(name, workload.name, threads) for name in ENGINES]
    try:
        differences = _compare_gradients([engine for engine in engines if engine.name != PRODUCTS])
        versions: dict[str, str] = {}
        for engine in engines:
            versions |= engine.ask("versions")
            engine.ask(f"round {workload.steps}")
            engine.ask(f"spread {threads}")
        times: dict[str, list[dict[str, float]]] = {engine.name: [] for engine in engines}
        for _ in range(rounds):
            for engine in engines:
                times[engine.name].append(_medians(engine.ask(f"round {workload.steps}")))
            print(f"\r{workload.name}: round {len(times['by_hand'])} of {rounds}", end="", file=sys.stderr)
        print(file=sys.stderr)
        memory = {engine.name: engine.ask("memory") for engine in engines}
    finally:
        for engine in engines:
            engine.__exit__(None, None, None)
    calm = _calm_rounds(times[PRODUCTS])
    rows = {name: _summary(taken, times) for name, taken in times.items()}
    for name, row in rows.items():
        row |= {"difference": differences.get(name), "resident_growth": memory[name]}
        row["calm"] = _summary([times[name][i] for i in calm], {n: [t[i] for i in calm] for n, t in times.items()})
    return {"engines": rows, "versions": versions, "calm_rounds": len(calm)}


def _calm_rounds(products: list[dict[str, float]]) -> list[int]:
    """The rounds in which the machine was not disturbed, see :data:`DISTURBED`."""
    least = min(taken["clock"] for taken in products)
    return [i for i, taken in enumerate(products) if taken["clock"] <= DISTURBED * least]


def _medians(taken: dict[str, list[float]]) -> dict[str, float]:
    return {clock: statistics.median(seconds) for clock, seconds in taken.items()}


def _summary(taken: list[dict[str, float]], times: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds; a ratio is taken within each round, whose steps ran at about the same time."""
    row: dict[str, Any] = {}
    for clock in ("clock", "processor"):
        row[f"{clock}_ms"] = statistics.median(t[clock] for t in taken) * 1e3
        for other in _COMPARED:
            ratios = [t[clock] / b[clock] for t, b in zip(taken, times[other], strict=True)]
            row[f"{clock}_to_{other}"] = statistics.median(ratios)
    return row


_COMPARED = ("by_hand", "torch", "autograd", "mygrad")


def _compare_gradients(engines: list[Engine]) -> dict[str, float]:
    """The largest difference of each engine's gradients from the hand-written ones.

    Raises:
        SystemExit: one is larger than :data:`TOLERANCE`.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for engine in engines:
            path = Path(folder) / f"{engine.name}.npz"
            engine.ask(f"check {path}")
            found[engine.name] = dict(np.load(path))
    reference = found["by_hand"]
    whole = float(np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in reference.values())))
    differences = {name: _difference(arrays, reference, whole) for name, arrays in found.items()}
    wrong = [name for name, difference in differences.items() if not difference <= TOLERANCE]
    if wrong:
        raise SystemExit(f"gradients differ from those written by hand: {', '.join(wrong)}; nothing was timed")
    return differences


def _difference(arrays: dict[str, Any], reference: dict[str, Any], whole: float) -> float:
    """Relative to the gradient's norm, or to a ten-thousandth of all gradients' (a key's bias has none at all)."""
    if arrays.keys() != reference.keys():
        return float("inf")
    return max(
        float(np.linalg.norm(arrays[name] - g) / max(float(np.linalg.norm(g)), 1e-4 * whole))
        for name, g in reference.items()
    )


def ops(workload: Workload) -> int:
    """Ops of the workload by hand: of each layer a product, a bias and an activation, and the loss."""
    assert isinstance(workload.size, MLPSize)
    return 3 * workload.size.layers


def section(data: dict[str, Any]) -> str:
    """The tables."""
    out = [
        f"## Speed, {_threads(data)}",
        "",
        "Forward, loss and the gradients of all parameters in float32,"
        f" {_threads(data)} an engine. Every engine runs in a process of its own; they take turns, {data['rounds']}"
        " rounds. Times are medians, and ratios are medians of the rounds' ratios to the same round of another engine."
        " *Processor* is the time of all of a process's threads together: it does not see whether other programs were"
        " running, nor whether the work was spread over the cores. *Kept* is `mb.keep_freed_memory()`, *compiled*"
        " `mb.use_compiled_kernels()`. Once warm, each engine's busiest threads are pinned to a core each. *Calm*"
        f" rounds are those in which the matrix products alone took at most {DISTURBED} times their least time: in"
        " others something else slowed the machine down, which hits NumPy's engines harder than PyTorch. Tables and"
        " chart are of all rounds.",
        "",
        f"![Ratios]({'single' if data['threads'] == 1 else 'speed'}.svg)",
        "",
    ]
    for name, workload in data["workloads"].items():
        calm = f"{workload['calm_rounds']} of {data['rounds']} rounds were calm."
        out += [f"### {name}: {WORKLOADS[name].title}", "", calm, "", _HEAD]
        for engine, row in workload["engines"].items():
            ratios = " | ".join(
                f"{row[f'{clock}_ms']:.3g} | {row[f'{clock}_to_by_hand']:.2f} | {row[f'{clock}_to_torch']:.2f}"
                for clock in ("clock", "processor")
            )
            difference = "–" if row["difference"] is None else f"{row['difference']:.0e}"
            memory = f"{row['resident_growth'] / 2**20:.0f} | {difference}"
            out.append(f"| {NAMES[engine]} | {ratios} | {memory} |")
        out.append("")
    return "\n".join([*out, _overhead(data), ""])


def _threads(data: dict[str, Any]) -> str:
    return "one thread" if data["threads"] == 1 else f"{data['threads']} threads"


_HEAD = (
    "| engine | ms | ÷ by hand | ÷ PyTorch | processor ms | ÷ by hand | ÷ PyTorch | RSS +MiB | gradients differ |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def overhead(data: dict[str, Any]) -> tuple[float, float, int, int]:
    """What memback costs on W4, in microseconds of the processor: an op of the hand-written form, and a recorded one.

    Then how many there are of each.
    """
    rows = data["workloads"]["W4"]["engines"]
    count, size = ops(WORKLOADS["W4"]), WORKLOADS["W4"].size
    assert isinstance(size, MLPSize)
    calls = 2 * size.layers
    extra = (rows["memback"]["processor_ms"] - rows["by_hand"]["processor_ms"]) * 1e3
    return extra / count, extra / calls, count, calls


def _overhead(data: dict[str, Any]) -> str:
    by_hand, recorded, count, calls = overhead(data)
    return (
        f"memback's overhead on W4, forward and backward together: {by_hand:.1f} µs for each of the {count} ops that"
        f" the hand-written form has, {recorded:.1f} µs for each of the {calls} that memback records (a product and its"
        " bias are one)."
    )


def chart(data: dict[str, Any]) -> str:
    """Ratios to the hand-written NumPy."""
    clock = "processor" if data["threads"] == 1 else "clock"  # which other programs do not disturb
    series = {
        NAMES[e]: [data["workloads"][w]["engines"][e][f"{clock}_to_by_hand"] for w in data["workloads"]]
        for e in ENGINES
        if e not in ("by_hand", PRODUCTS)
    }
    title = "Time of a step as a multiple of NumPy by hand (less is better)"
    return bars(title, [f"{w}: {WORKLOADS[w].title}" for w in data["workloads"]], series)
