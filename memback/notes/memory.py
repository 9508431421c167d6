"""Section 4.3: what a step of the network holds when everything is retained, what is needed, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from memback.engine.tensor import Tensor
from memback.notes.check import Check, Section
from memback.notes.network import STEPS, Problem
from memback.profiling.run import profile

__all__ = ["Memory", "Retention", "section"]

MODES = ("retain-all", "full", "inference")


@dataclass(frozen=True)
class Retention:
    """A way to run the step.

    ``keeps`` names the variables of the forward pass that are kept for backward, ``saved_bytes`` their size at the end
    of forward, ``peak_bytes`` the most that was live at any moment of the step by tracemalloc, without Python's own
    small objects.
    """

    mode: str
    keeps: tuple[str, ...]
    saved_bytes: int
    peak_bytes: int | None


@dataclass(frozen=True)
class Memory(Section):
    """The ways side by side."""

    ways: tuple[Retention, ...]
    same_gradients: Check
    ordered: Check


def section(seed: int) -> Memory:
    """Section 4.3 on the network that ``seed`` makes."""
    problem = Problem.make(seed)
    x = Tensor(problem.x)
    report = profile(problem.model, step=lambda: problem.model.loss(x, problem.y), modes=MODES, rounds=0, predict=False)
    ways = tuple(
        Retention(
            run.mode,
            tuple(step.output for step, layer in zip(STEPS, run.layers, strict=True) if layer.saved_bytes),
            run.saved_bytes,
            run.measured_peak_bytes,
        )
        for run in report.runs
    )
    first, *others = [run.gradient_sha256 for run in report.runs if run.mode != "inference"]
    retained, needed, nothing = (way.saved_bytes for way in ways)
    return Memory(
        ways,
        Check.holds("retain-all and full: bit-identical gradients", "30", first is not None and others == [first]),
        Check.holds("retain-all holds more than full, inference nothing", "26", retained > needed > nothing == 0),
    )
