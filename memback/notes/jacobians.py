"""Section 4.1 against section 4.2: explicit Jacobians and their sum, or the op's backward, as D grows.

Both give the same gradients; they differ in bytes (those of the arrays) and in time. Bytes are exact and checked. Times
are this machine's, and not checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import REGISTRY, Op
from memback.notes.check import Check, Section
from memback.notes.network import by_backward, jacobians, summed

__all__ = ["CASES", "Case", "Cost", "Costs", "Growth", "compare", "section"]

LIMIT_BYTES = 16 * 2**20
"""The largest Jacobians that are made. Memory for larger ones is fetched from the system at every call, page by
page, which takes several times as long per byte: times would show that step, not the growth with D.
"""
ROUNDS = 25
FITTED = 3
"""Over how many of the largest sizes an exponent is fitted."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """An op whose output has D features, and the equations of both ways.

    ``ranks`` are the dimensions of its inputs, each of D elements. ``sizes`` are the D to be compared; the first is 1,
    whose time is what a call costs whatever D is.
    """

    op: str
    ranks: tuple[int, ...]
    explicit: str
    direct: str
    sizes: tuple[int, ...]
    correction: str = ""

    def inputs(self, size: int, rng: np.random.Generator) -> list[Array]:
        """float32 inputs of the op for one datapoint, as in the notes."""
        shapes = [(size,) * rank for rank in self.ranks]
        return [rng.standard_normal(shape, np.float32) for shape in shapes]


CASES = (
    Case(
        "relu",
        (1,),
        "Eqs. 20, 21",
        "Eq. 23",
        sizes=(1, 128, 512, 1024, 2048, 2**14, 2**17, 2**20),
        correction="Section 4.1 names Eq. 21 as the form that takes O(D) operations; it is Eq. 23.",
    ),
    Case(
        "linear",
        (1, 2, 1),
        "Eqs. 39, 43, 46, 25",
        "Eqs. 49, 53, 57",
        sizes=(1, 32, 64, 96, 128, 256, 384, 512),
    ),
)


@dataclass(frozen=True)
class Cost:
    """One D. Bytes of all the Jacobians and of all the gradients; medians in seconds.

    ``jacobian_seconds`` is None where the Jacobians are too large to be made; ``jacobian_bytes`` then follow from their
    shapes (Eq. 14).
    """

    size: int
    jacobian_bytes: int
    gradient_bytes: int
    jacobian_seconds: float | None
    backward_seconds: float


@dataclass(frozen=True)
class Growth:
    """Both ways of one op. An exponent p says that bytes, or time beyond that of D = 1, grow as D^p.

    It is fitted over the largest sizes, and None where too few of them take measurably longer than D = 1.
    """

    op: str
    explicit: str
    direct: str
    correction: str
    costs: tuple[Cost, ...]
    jacobian_exponent: float | None
    backward_exponent: float | None
    jacobian_bytes_exponent: float | None
    backward_bytes_exponent: float | None
    same: Check
    ratio: Check


@dataclass(frozen=True)
class Costs(Section):
    """Section 4.1: every op that was compared."""

    rounds: int
    fitted: int
    growths: tuple[Growth, ...]
    at_zero: Check


def section(seed: int) -> Costs:
    """Section 4.1: compare both ways for each op."""
    return Costs(ROUNDS, FITTED, tuple(compare(case, seed, rounds=ROUNDS) for case in CASES), _at_zero())


def compare(
    case: Case, seed: int, limit_bytes: int = LIMIT_BYTES, clock: Clock = time.perf_counter, rounds: int = ROUNDS
) -> Growth:
    """Both ways for growing D.

    Args:
        case: the op.
        seed: of the inputs.
        limit_bytes: Jacobians of more are not made.
        clock: gives the time in seconds.
        rounds: how often each is timed.
    """
    rng = np.random.default_rng(seed)
    trials = [
        _Trial(REGISTRY[case.op], size, rng.standard_normal(size, np.float32), case.inputs(size, rng))
        for size in case.sizes
    ]
    made = [trial for trial in trials if trial.shape_bytes() <= limit_bytes]
    same = _same(made)
    explicit: list[list[float]] = [[] for _ in made]
    direct: list[list[float]] = [[] for _ in trials]
    for _ in range(rounds):  # sizes and methods alternate, so that a slow moment of the machine hits them all equally
        for trial, seconds in zip(trials, direct, strict=True):
            seconds.append(_seconds(trial.direct, clock))
        for trial, seconds in zip(made, explicit, strict=True):
            seconds.append(_seconds(trial.explicit, clock))
    medians = [*map(median, explicit), *[None] * (len(trials) - len(made))]
    costs = tuple(trial.cost(e, median(d)) for trial, e, d in zip(trials, medians, direct, strict=True))
    return Growth(
        case.op,
        case.explicit,
        case.direct,
        case.correction,
        costs,
        jacobian_exponent=_exponent([(c.size, c.jacobian_seconds) for c in costs if c.jacobian_seconds is not None]),
        backward_exponent=_exponent([(c.size, c.backward_seconds) for c in costs]),
        jacobian_bytes_exponent=_exponent([(c.size, c.jacobian_bytes) for c in costs]),
        backward_bytes_exponent=_exponent([(c.size, c.gradient_bytes) for c in costs]),
        same=same,
        ratio=Check.holds(
            f"the Jacobians of {case.op} take exactly D times the bytes of the gradients",
            "14",
            all(cost.jacobian_bytes == cost.size * cost.gradient_bytes for cost in costs),
        ),
    )


def _at_zero() -> Check:
    """What Eq. 18 says where relu has a kink: both ways give 0."""
    relu, zero, one = REGISTRY["relu"], np.zeros(1), np.ones(1)
    found = np.concatenate([relu.jacobian(zero).reshape(-1), relu.backward(one, zero)])
    return Check.near("at a = 0 the derivative of relu is 0, both ways", "18", found, np.zeros(2), 0.0)


# -- one size


@dataclass
class _Trial:
    """The inputs of one size; ``made_bytes`` are of the Jacobians that were made last."""

    op: Op
    size: int
    d_out: Array
    inputs: list[Array]
    made_bytes: int | None = None

    def explicit(self) -> tuple[Array, ...]:
        """Make the Jacobians, then sum."""
        made = jacobians(self.op, self.inputs)
        self.made_bytes = sum(jacobian.nbytes for jacobian in made)
        return summed(made, self.d_out)

    def direct(self) -> tuple[Array, ...]:
        """Let the op's backward do it."""
        return by_backward(self.op, self.d_out, self.inputs)

    def shape_bytes(self) -> int:
        """Bytes of the Jacobians by their shape: output's + input's."""
        return sum(self.d_out.size * array.nbytes for array in self.inputs)

    def cost(self, jacobian_seconds: float | None, backward_seconds: float) -> Cost:
        """The figures of this size."""
        gradient_bytes = sum(gradient.nbytes for gradient in self.direct())
        jacobian_bytes = self.shape_bytes() if self.made_bytes is None else self.made_bytes
        return Cost(self.size, jacobian_bytes, gradient_bytes, jacobian_seconds, backward_seconds)


def _seconds(function: Callable[[], object], clock: Clock) -> float:
    function()  # what ran before has left the caches and the allocator in its own state
    began = clock()
    function()
    return clock() - began


def _exponent(points: Sequence[tuple[int, float]]) -> float | None:
    """The slope of log(cost beyond that of the first size) over log D through the largest sizes, by least squares."""
    fixed = points[0][1]
    grown = [(size, cost - fixed) for size, cost in points[1:] if cost >= 2 * fixed and cost > 0][-FITTED:]
    if len(grown) < 2:
        return None
    sizes, costs = zip(*grown, strict=True)
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _same(trials: Sequence[_Trial]) -> Check:
    """Both ways agree at every size, within what float32 sums of D terms may differ by (Higham 2002, section 3.1)."""
    found = [np.concatenate([g.reshape(-1) for g in trial.explicit()]) for trial in trials]
    given = [np.concatenate([g.reshape(-1) for g in trial.direct()]) for trial in trials]
    tolerance = float(np.finfo(np.float32).eps) * trials[-1].size
    claim = f"{trials[0].op.name}: both ways give the same gradients"
    return Check.near(claim, "25, 26", np.concatenate(found), np.concatenate(given), tolerance)
