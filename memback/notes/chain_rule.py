"""Section 1: partial and total derivatives on the notes' own graphs, with numbers.

Each derivative is found three ways: by :func:`memback.partial` or :func:`memback.total`, by the chain rule, and by
finite differences, for which a graph is evaluated on plain numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from memback.engine.arrays import Array
from memback.engine.derivatives import UndefinedDerivativeError, partial, total
from memback.engine.op import REGISTRY
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor
from memback.notes import differences
from memback.notes.check import Check, Section

__all__ = ["ChainRule", "Derivative", "Graph", "section"]

_Call: TypeAlias = tuple[str, ...]
"""An op's name and those of its inputs."""


@dataclass(frozen=True)
class Derivative:
    """A row: a derivative, how it was asked for, its value and its finite difference.

    ``value`` is None where the derivative is undefined; ``error`` says then why.
    """

    equation: str
    name: str
    call: str
    value: float | None
    difference: float | None
    check: Check
    error: str = ""


@dataclass(frozen=True)
class Graph:
    """A compute graph at one point: its variables in order, and its derivatives."""

    title: str
    formulas: tuple[str, ...]
    values: dict[str, float]
    derivatives: tuple[Derivative, ...]


@dataclass(frozen=True)
class ChainRule(Section):
    """Section 1: the three graphs."""

    graphs: tuple[Graph, ...]


def section(seed: int) -> ChainRule:
    """Section 1, at a point that ``seed`` decides."""
    point = float(np.random.default_rng(seed).uniform(0.5, 1.5))
    return ChainRule((_y_of_x(point), _x_and_y_of_t(point), _with_values_between(point)))


# -- the graphs


def _y_of_x(point: float) -> Graph:
    """f(x, y(x)): Eqs. 1 to 3."""
    trace = _Trace("x", point, {"y": ("exp", "x"), "f": ("multiply", "x", "y")})
    rows = (
        trace.partial("f", "x", "1a"),
        trace.partial("f", "y", "1"),
        trace.total("f", "y", "2"),
        trace.total("y", "x", "3"),
        trace.sum_of_paths(("y",), "x", "3", direct=True),
        trace.total("f", "x", "3"),
    )
    return trace.graph("f(x, y(x))", ("y = exp(x)", "f = x y"), rows)


def _x_and_y_of_t(point: float) -> Graph:
    """f(x(t), y(t)): Eqs. 4 to 9. What Eq. 7 asks for is undefined; f_t, a function of t alone, has it (Eqs. 8, 9)."""
    calls: dict[str, _Call] = {"x": ("sqrt", "t"), "y": ("power", "t", "2"), "f": ("multiply", "x", "y")}
    trace = _Trace("t", point, {**calls, "f_t": ("power", "t", "2.5")}, {"2": 2.0, "2.5": 2.5})
    rows = (
        trace.undefined("f", "t", "4, 5, 7"),
        trace.partial("f", "x", "1a"),
        trace.partial("f", "y", "1"),
        trace.total("x", "t", "6"),
        trace.total("y", "t", "6"),
        trace.sum_of_paths(("x", "y"), "t", "6"),
        trace.total("f", "t", "6"),
        trace.partial("f_t", "t", "8, 9"),
        trace.sum_of_partials(("x", "y"), "t", "9", of="f_t"),
    )
    return trace.graph("f(x(t), y(t))", ("x = √t", "y = t²", "f = x y", "f_t(t) = √t t²"), rows)


def _with_values_between(point: float) -> Graph:
    """f(x(a(t)), y(b(t))): Eq. 6 holds as it stands, because its dx/dt and dy/dt are total."""
    calls: dict[str, _Call] = {"a": ("sqrt", "t"), "x": ("exp", "a"), "b": ("exp", "t"), "y": ("sqrt", "b")}
    trace = _Trace("t", point, {**calls, "f": ("multiply", "x", "y")})
    rows = (
        trace.undefined("x", "t", "5"),
        trace.total("x", "t", "6"),
        trace.total("y", "t", "6"),
        trace.sum_of_paths(("x", "y"), "t", "6"),
        trace.total("f", "t", "6"),
    )
    formulas = ("a = √t", "x = exp(a)", "b = exp(t)", "y = √b", "f = x y")
    return trace.graph("f(x(a(t)), y(b(t)))", formulas, rows)


# -- derivatives on a graph


class _Trace:
    """A graph of ops recorded on a tape, which can also be evaluated on plain numbers with a variable changed."""

    def __init__(
        self, source: str, point: float, calls: Mapping[str, _Call], constants: Mapping[str, float] | None = None
    ) -> None:
        self._calls = calls
        self._source = source
        self._constants = {name: np.array(value) for name, value in (constants or {}).items()}
        self._tensors = {source: Tensor(np.array(point), requires_grad=True)}
        self._tape = Tape()
        with self._tape:
            for name, (op, *inputs) in calls.items():
                known = self._tensors | self._constants
                self._tensors[name] = REGISTRY[op](*(known[i] for i in inputs))

    def graph(self, title: str, formulas: tuple[str, ...], rows: tuple[Derivative, ...]) -> Graph:
        """With the values of its variables."""
        return Graph(title, formulas, {name: float(t) for name, t in self._tensors.items()}, rows)

    def partial(self, f: str, x: str, equation: str) -> Derivative:
        """∂f/∂x: of one function, the other arguments fixed."""
        difference = self._difference(f, x, only=True)
        return _row(equation, f"∂{f}/∂{x}", f"mb.partial({f}, {x})", self._partial(f, x), difference)

    def total(self, f: str, x: str, equation: str) -> Derivative:
        """df/dx: along the whole graph."""
        return _row(equation, f"d{f}/d{x}", f"mb.total({f}, {x})", self._total(f, x), self._difference(f, x))

    def sum_of_paths(self, inner: tuple[str, ...], x: str, equation: str, direct: bool = False) -> Derivative:
        """The right-hand side of Eq. 3 (with a ``direct`` term) or Eq. 6 for f."""
        terms = [f"∂f/∂{x}"] if direct else []
        value = self._partial("f", x) if direct else 0.0
        for name in inner:
            terms.append(f"∂f/∂{name} d{name}/d{x}")
            value += self._partial("f", name) * self._total(name, x)
        return _row(equation, " + ".join(terms), "the chain rule", value, self._difference("f", x))

    def sum_of_partials(self, inner: tuple[str, ...], x: str, equation: str, of: str) -> Derivative:
        """The right-hand side of Eq. 9, which is the derivative of the function ``of``."""
        terms = [f"∂f/∂{name} ∂{name}/∂{x}" for name in inner]
        value = sum(self._partial("f", name) * self._partial(name, x) for name in inner)
        return _row(equation, " + ".join(terms), "the chain rule", value, self._difference(of, x))

    def undefined(self, f: str, x: str, equation: str) -> Derivative:
        """∂f/∂x where x is no argument of f: an error, not zero."""
        name, call = f"∂{f}/∂{x}", f"mb.partial({f}, {x})"
        try:
            value = self._partial(f, x)
        except UndefinedDerivativeError as error:
            check = Check.holds(f"{name} is undefined", equation, truth=True)
            return Derivative(equation, name, call, None, None, check, str(error))
        check = Check.holds(f"{name} is undefined", equation, truth=False)
        return Derivative(equation, name, call, value, None, check)

    def _partial(self, f: str, x: str) -> float:
        return float(partial(self._tensors[f], self._tensors[x]))

    def _total(self, f: str, x: str) -> float:
        return float(total(self._tensors[f], self._tensors[x]))

    def _difference(self, f: str, x: str, only: bool = False) -> float:
        """The finite difference of f by x: of f's own function alone, or of everything that follows from x."""

        def changed(value: Array) -> Array:
            known = {name: tensor.data for name, tensor in self._tensors.items()} if only else {}
            return self._evaluate(f, {**known, x: value})

        return float(differences.jacobian(changed, self._tensors[x].data))

    def _evaluate(self, f: str, known: Mapping[str, Array]) -> Array:
        values = {**self._constants, self._source: self._tensors[self._source].data, **known}
        for name, (op, *inputs) in self._calls.items():
            if name == f or name not in known:
                values[name] = REGISTRY[op](*(values[i] for i in inputs))
        return values[f]


def _row(equation: str, name: str, call: str, value: float, difference: float) -> Derivative:
    check = Check.near(name, equation, value, difference, differences.TOLERANCE)
    return Derivative(equation, name, call, value, difference, check)
