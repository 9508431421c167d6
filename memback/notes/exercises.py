"""Section 5: the six exercises, their answers written out, and whether the answers are right.

All six are about one linear layer; here it is the network's third one, on the first image of the batch, in float64.
Each answer is compared with finite differences, which know of no formula, with the sum over indices that it
simplifies, and with what the op itself gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import REGISTRY
from memback.notes import differences
from memback.notes.check import Check, Section, checks_in
from memback.notes.network import Problem

__all__ = ["Exercise", "Exercises", "section"]

ROUNDING = 1e-12
"""How far two float64 sums of the same terms may differ, relative to the largest result where that exceeds 1."""


@dataclass(frozen=True)
class Exercise:
    """A question, its answer with the equation number, and the answer's errors.

    ``sum_equation`` is the sum over indices that the answer simplifies; where there is none, ``against_sum`` is None.
    """

    number: int
    question: str
    answer: str
    equation: str
    sum_equation: str
    correction: str
    against_differences: Check
    against_sum: Check | None
    against_op: Check

    @property
    def checks(self) -> Sequence[Check]:
        """Everything that the answer was compared with."""
        return tuple(checks_in((self.against_differences, self.against_sum, self.against_op)))


@dataclass(frozen=True)
class Exercises(Section):
    """Section 5, on linear from ``inputs`` to ``outputs`` features."""

    inputs: int
    outputs: int
    exercises: tuple[Exercise, ...]


@dataclass(frozen=True)
class _Layer:
    """a = linear(h, W, b), L = sqerr(a, y), and dL/da."""

    h: Array
    W: Array
    b: Array
    y: Array

    def a(self, **changed: Array) -> Array:
        """The output, with some inputs changed (Eq. 31)."""
        inputs = {"h": self.h, "W": self.W, "b": self.b} | changed
        return np.asarray(REGISTRY["linear"](inputs["h"], inputs["W"], inputs["b"]))

    def loss(self, **changed: Array) -> Array:
        """What the output leads to (Eq. 10b)."""
        return np.asarray(REGISTRY["sqerr"](self.a(**changed), self.y))

    @property
    def d_a(self) -> Array:
        """dL/da."""
        return np.asarray(REGISTRY["sqerr"].backward(np.array(1.0), self.a(), self.y)[0])


def section(seed: int) -> Exercises:
    """Section 5 on the network that ``seed`` makes."""
    problem = Problem.make(seed, "float64", batch=1).first()
    values = problem.variables()
    layer = _Layer(values["h₂"], values["W₃"], values["b₃"], values["y"])
    jacobians = REGISTRY["linear"].jacobian(layer.h, layer.W, layer.b)
    gradients = REGISTRY["linear"].backward(layer.d_a, layer.h, layer.W, layer.b)
    exercises = [
        _exercise(layer, question, function, op_gives)
        for question, function, op_gives in zip(
            _QUESTIONS, (layer.a,) * 3 + (layer.loss,) * 3, (*jacobians, *gradients), strict=True
        )
    ]
    return Exercises(len(layer.h), len(layer.b), tuple(exercises))


@dataclass(frozen=True)
class _Question:
    """``solve`` gives the answer, ``indices`` and ``terms`` the sum of ``sum_equation`` that it simplifies."""

    number: int
    by: str
    text: str
    answer: str
    equation: str
    solve: Callable[[_Layer], Array]
    sum_equation: str = ""
    indices: str = ""
    terms: Callable[[_Layer], Sequence[Array]] = lambda layer: ()
    correction: str = ""


_QUESTIONS = (
    _Question(
        1,
        "h",
        "How does a_j change with h_α?",
        "∂a_j/∂h_α = W_αj",
        "39",
        lambda layer: layer.W.T,
        "38",
        "ia,ij->ja",
        lambda layer: (np.eye(len(layer.h)), layer.W),
    ),
    _Question(
        2,
        "W",
        "How with W_αβ?",
        "∂a_j/∂W_αβ = h_α δ_jβ",
        "43",
        lambda layer: np.multiply.outer(np.eye(len(layer.b)), layer.h).swapaxes(1, 2),
        "42",
        "i,ia,jb->jab",
        lambda layer: (layer.h, np.eye(len(layer.h)), np.eye(len(layer.b))),
    ),
    _Question(
        3,
        "b",
        "How with b_α?",
        "∂a_j/∂b_α = δ_jα",
        "46",
        lambda layer: np.eye(len(layer.b)),
        correction="The left side of Eq. 44 is by b, not by h.",
    ),
    _Question(
        4,
        "h",
        "Given dL/da, what is dL/dh?",
        "dL/dh = dL/da Wᵀ",
        "49",
        lambda layer: layer.d_a @ layer.W.T,
        "48",
        "aj,j->a",
        lambda layer: (layer.W, layer.d_a),
    ),
    _Question(
        5,
        "W",
        "Given dL/da, what is dL/dW?",
        "dL/dW = hᵀ dL/da",
        "53",
        lambda layer: np.outer(layer.h, layer.d_a),
        "51",
        "a,jb,j->ab",
        lambda layer: (layer.h, np.eye(len(layer.b)), layer.d_a),
    ),
    _Question(
        6,
        "b",
        "Given dL/da, what is dL/db?",
        "dL/db = dL/da",
        "57",
        lambda layer: layer.d_a,
        "55",
        "ja,j->a",
        lambda layer: (np.eye(len(layer.b)), layer.d_a),
    ),
)


def _exercise(layer: _Layer, question: _Question, function: Callable[..., Array], op_gives: Array) -> Exercise:
    answer = question.solve(layer)
    found = differences.jacobian(lambda value: function(**{question.by: value}), getattr(layer, question.by))
    what = f"exercise {question.number}"
    return Exercise(
        question.number,
        question.text,
        question.answer,
        question.equation,
        question.sum_equation,
        question.correction,
        Check.near(f"{what}, finite differences", question.equation, answer, found, differences.TOLERANCE),
        _against_sum(what, layer, question, answer),
        Check.near(f"{what}, the op", question.equation, answer, op_gives, ROUNDING),
    )


def _against_sum(what: str, layer: _Layer, question: _Question, answer: Array) -> Check | None:
    if not question.sum_equation:
        return None
    term_by_term = np.einsum(question.indices, *question.terms(layer))
    return Check.near(f"{what}, the sum", question.sum_equation, answer, term_by_term, ROUNDING)
