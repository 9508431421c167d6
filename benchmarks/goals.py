"""What was to be reached, what was measured, and whether the one is the other: the head of the results page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.speed import NAMES, PRODUCTS, overhead

_KEPT, _FAST = "memback+kept", "memback+fast"
_NUMPY_ENGINES = ("autograd", "mygrad")
_TO_TORCH = {"W1": 1.0, "W2": 1.1, "W3": 1.1, "W4": 1.0}


class Goal(NamedTuple):
    """A line of the table: what, the limit, the measured number, both in the same unit.

    ``calm`` is the number of calm rounds alone, where that is known.
    """

    what: str
    limit: float
    measured: float
    unit: str = ""
    remark: str = ""
    calm: float | None = None

    def line(self) -> str:
        """As Markdown."""
        what = f"{self.what} ({self.remark})" if self.remark else self.what
        calm = "" if self.calm is None else f"{self._number(self.calm)}, {self._verdict(self.calm)}"
        return (
            f"| {what} | {self.limit:.3g}{self.unit} | {self._number(self.measured)} | {self._verdict(self.measured)} |"
            f" {calm} |"
        )

    def _number(self, number: float) -> str:
        digits = ".0f" if self.unit in (" ms", " MiB") else ".1f" if self.unit else ".3f"
        return f"{number:{digits}}{self.unit}"

    def _verdict(self, number: float) -> str:
        return "met" if number <= self.limit else "**missed**"


def section(data: dict[str, Any]) -> str:
    """The table, from whatever parts have been measured."""
    goals = [goal for name, make in _MAKERS.items() if name in data for goal in make(data[name]["data"])]
    return "\n".join(
        [
            "## Goals",
            "",
            "By the clock, engines on two threads; what watching, recomputing and the tape cost is in time of the"
            " processor. The last column is of the calm rounds alone, see below.",
            "",
            "| | at most | measured | | calm |",
            "|---|---:|---:|---|---|",
            *(goal.line() for goal in goals),
            "",
        ]
    )


def _speed(data: dict[str, Any]) -> Iterator[Goal]:
    workloads = {name: workload["engines"] for name, workload in data["workloads"].items()}
    for name, engines in workloads.items():
        for engine in (_KEPT, _FAST) if name == "W3" else (_KEPT,):
            row, calm = engines[engine], engines[engine]["calm"]
            yield Goal(
                f"{name}, ÷ PyTorch eager",
                _TO_TORCH[name],
                row["clock_to_torch"],
                remark=NAMES[engine],
                calm=calm["clock_to_torch"],
            )
    for name, engines in workloads.items():
        for other in _NUMPY_ENGINES:
            floor = engines[PRODUCTS][f"clock_to_{other}"]
            remark = "" if floor <= 0.75 else f"its matrix products alone take {floor:.2f}: out of reach"
            row, calm = engines[_KEPT], engines[_KEPT]["calm"]
            ratio = f"clock_to_{other}"
            yield Goal(f"{name}, ÷ {NAMES[other]}", 0.75, row[ratio], remark=remark, calm=calm[ratio])
    for name, engines in workloads.items():
        growth = {engine: engines[engine]["resident_growth"] / 2**20 for engine in (_KEPT, "torch")}
        yield Goal(f"{name}, growth of the resident set (limit: PyTorch's)", growth["torch"], growth[_KEPT], " MiB")


def _single(data: dict[str, Any]) -> Iterator[Goal]:
    by_hand, recorded, _, _ = overhead(data)
    yield Goal(
        "tape overhead on W4, an op of the hand-written form", 6, by_hand, " µs", f"{recorded:.1f} a recorded one"
    )


def _startup(data: dict[str, Any]) -> Iterator[Goal]:
    yield Goal(
        "`import memback`, beyond NumPy",
        60,
        data["import memback"]["clock_ms"] - data["import numpy"]["clock_ms"],
        " ms",
    )
    yield Goal("`memback --help`", 300, data["memback --help"]["clock_ms"], " ms")


def _costs(data: dict[str, Any]) -> Iterator[Goal]:
    for name, ratio in data["watching"].items():
        yield Goal(f"{name} under a ledger, more time", 3, 100 * (ratio - 1), " %")
    for name, ratio in data["watching_frozen"].items():
        yield Goal(f"{name} under a ledger, more time, what was loaded before frozen", 3, 100 * (ratio - 1), " %")
    for name, row in data["recomputing"].items():
        share = round(100 * row["flops"] + 5, 1)
        yield Goal(f"{name}: more time (recomputed FLOPs' share + 5 %)", share, 100 * row["time"], " %")
    for name, row in data["memory"].items():
        yield Goal(f"{name}, measured peak ÷ smallest possible", 1.05, row["measured"] / row["sum"])


_MAKERS = {"speed": _speed, "single": _single, "startup": _startup, "costs": _costs}
