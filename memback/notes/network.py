"""The network of Eq. 11 on handwritten digits: its forward pass (section 3) and its backward pass (section 4.2).

The ledger of the real run gives what is held, freed and dropped; no size comes from a formula.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from memback.data import REGISTRY as DATA
from memback.engine.arrays import Array, distinct_bytes, leaves, root
from memback.engine.node import Edge, Node
from memback.engine.observer import Call, Observer
from memback.engine.op import REGISTRY, Op
from memback.engine.state import current, manual_seed
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor
from memback.models import NotesNetwork
from memback.notes.check import Check, Section
from memback.profiling.ledger import Ledger

__all__ = ["STEPS", "Backward", "BackwardStep", "Forward", "ForwardStep", "Problem", "Step", "backward", "forward"]

BATCH = 64
HIDDEN = 128
CLASSES = 10


@dataclass(frozen=True)
class Step:
    """A line of Eq. 11, with the number of the line of Eq. 30 that reverses it, and what that line misprints."""

    equation: str
    output: str
    op: str
    inputs: tuple[str, ...]
    backward_equation: str
    correction: str = ""

    @property
    def formula(self) -> str:
        """As the notes write it."""
        return f"{self.output} = {self.op}({', '.join(self.inputs)})"

    @property
    def backward_formula(self) -> str:
        """The call of Eq. 26 for this step; of the loss by itself the derivative is 1 (Eq. 29b)."""
        one = " = 1" if self.output == "L" else ""
        return f"{self.op}.backward(dL/d{self.output}{one}; {', '.join(self.inputs)})"


STEPS = (
    Step(
        "11a",
        "a₁",
        "linear",
        ("x", "W₁", "b₁"),
        "30f",
        "Eq. 30f names dL/dW₂ and dL/db₂ as its results; they are dL/dW₁ and dL/db₁.",
    ),
    Step(
        "11b",
        "h₁",
        "relu",
        ("a₁",),
        "30e",
        "Eq. 30e repeats the arguments of Eq. 30c; they are dL/dh₁ and a₁.",
    ),
    Step("11c", "a₂", "linear", ("h₁", "W₂", "b₂"), "30d"),
    Step("11d", "h₂", "relu", ("a₂",), "30c"),
    Step("11e", "f", "linear", ("h₂", "W₃", "b₃"), "30b"),
    Step("11f", "L", "sqerr", ("f", "y"), "30a"),
)

PARAMETERS = {"W₁": (0, "weight"), "b₁": (0, "bias"), "W₂": (2, "weight")} | {
    "b₂": (2, "bias"),
    "W₃": (4, "weight"),
    "b₃": (4, "bias"),
}
"""Which layer's which parameter each name of the notes is."""

Variables: TypeAlias = dict[str, Array]


# -- the network and its data


@dataclass(frozen=True)
class Problem:
    """The model, a batch of digits and their targets."""

    model: NotesNetwork
    x: Array
    y: Array

    @classmethod
    def make(cls, seed: int, dtype: str = "float32", batch: int = BATCH) -> Problem:
        """Parameters and batch derive from ``seed`` alone; the thread's random stream is left as it was."""
        x, labels = DATA["digits"](dtype).batch(batch, seed, 0)
        with _random_stream(seed):
            model = NotesNetwork(x.shape[1], HIDDEN, CLASSES, dtype=dtype)
        return cls(model, x, np.eye(CLASSES, dtype=dtype)[labels])

    def first(self) -> Problem:
        """The same with the first image alone, as a vector: the notes' single datapoint."""
        return Problem(self.model, self.x[0], self.y[0])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The six of Eq. 12, by the notes' names."""
        layers = self.model.layers
        return {name: getattr(layers[place], kind) for name, (place, kind) in PARAMETERS.items()}

    @property
    def arguments(self) -> Variables:
        """All that is there before the forward pass, by the notes' names."""
        return {"x": self.x, "y": self.y, **{name: p.data for name, p in self.parameters.items()}}

    def gradients(self) -> Variables:
        """What the last backward gave for Eq. 12."""
        return {name: p.grad for name, p in self.parameters.items()}

    def variables(self) -> Variables:
        """Eq. 11 step by step on plain arrays: every variable of the forward pass."""
        values = self.arguments
        for step in STEPS:
            values[step.output] = REGISTRY[step.op](*(values[name] for name in step.inputs))
        return values


@contextmanager
def _random_stream(seed: int) -> Iterator[None]:
    state = current()
    before = (state.seed, state.draws)
    manual_seed(seed)
    try:
        yield
    finally:
        state.seed, state.draws = before


# -- the chain rule along Eq. 11, for any way to take one step


def jacobians(op: Op, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """The op's Jacobian by each input (Eq. 14): section 4.1."""
    made = op.jacobian(*inputs)
    return (made,) if op.single else made


def summed(made: Sequence[Array], d_out: Array) -> tuple[Array, ...]:
    """The chain rule on explicit Jacobians: a sum over the op's outputs (Eqs. 21, 25)."""
    outputs = list(range(d_out.ndim))
    sums = []
    for jacobian in made:
        everything = list(range(jacobian.ndim))
        sums.append(np.einsum(d_out, outputs, jacobian, everything, everything[d_out.ndim :]))
    return tuple(sums)


def by_backward(op: Op, d_out: Array, inputs: Sequence[Array]) -> tuple[Array, ...]:
    """Call the op's backward (Eq. 26): section 4.2."""
    gradients = op.backward(d_out, *inputs)
    return (gradients,) if op.single else gradients


def gradients_by(way: Callable[[Op, Array, Sequence[Array]], tuple[Array, ...]], values: Variables) -> Variables:
    """The gradients of Eq. 12, from the loss back to the first step; each is the input of the one before."""
    gradients = {"L": np.ones_like(values["L"])}
    for step in reversed(STEPS):
        inputs = [values[name] for name in step.inputs]
        gradients |= zip(step.inputs, way(REGISTRY[step.op], gradients[step.output], inputs), strict=True)
    return {name: gradients[name] for name in PARAMETERS}


# -- the real run, under watch


@dataclass(frozen=True)
class ForwardStep:
    """A recorded step: what it keeps for backward (by the notes' names), and bytes by the ledger's row.

    ``saved_bytes`` are of what the step made and the tape keeps, ``shared_bytes`` of what it keeps and another step
    made. Parameters and inputs count in neither.
    """

    equation: str
    formula: str
    shape: tuple[int, ...]
    keeps: tuple[str, ...]
    saved_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class BackwardStep:
    """A step of the backward pass: what it was given, what it gave, and bytes before and after by the ledger.

    ``dropped`` is the gradient that it consumed, ``dropped_bytes`` 0 if that is still alive afterwards.
    """

    equation: str
    formula: str
    yields: tuple[str, ...]
    uses: tuple[str, ...]
    freed_bytes: int
    held_bytes: int
    dropped: str
    dropped_bytes: int
    gradient_bytes: int
    correction: str


class Recorder(Observer):
    """Record what each step of Eq. 11 keeps and what each step of Eq. 30 frees, with a ledger on the same run.

    A buffer is freed when a weak reference to it dies. The ledger is an independent check, because it relies on what
    the tape reports.

    Args:
        arguments: what is there before the step, by the notes' names.

    Attributes:
        ledger: the :class:`Ledger` of the run.
        keeps: for each step of Eq. 11 the names of what it keeps for backward.
        backward_steps: the steps of Eq. 30, in their order.
        saved_at_end_of_forward: bytes of the distinct buffers that are saved when backward begins.
        ledger_held: bytes held at the end of forward and after each step of Eq. 30, as the ledger has them.
    """

    def __init__(self, arguments: Variables) -> None:
        self.ledger = Ledger(events=False)
        self.keeps: list[tuple[str, ...]] = []
        self.backward_steps: list[BackwardStep] = []
        self.saved_at_end_of_forward = 0
        self.ledger_held: list[int] = []
        self._names = {id(root(array)): name for name, array in arguments.items()}
        self._arguments = frozenset(self._names)
        self._saved: dict[int, weakref.ref[Array]] = {}
        self._uses: tuple[str, ...] = ()
        self._held_before = 0
        self._incoming: tuple[Callable[[], Array | None], int] = (lambda: None, 0)

    @property
    def held_bytes(self) -> int:
        """Bytes of the saved buffers that are still there, arguments excluded."""
        return distinct_bytes(buffer for ref in self._saved.values() if (buffer := ref()) is not None)

    def forward_begins(self, op: Op) -> None:
        self.ledger.forward_begins(op)

    def forward_ended(self, call: Call) -> None:
        self.ledger.forward_ended(call)
        self._names[id(root(call.out))] = STEPS[len(self.keeps)].output
        self.keeps.append(() if call.node is None else self._note(call.node))

    def backward_pass_begins(self) -> None:
        self.ledger.backward_pass_begins()
        self.saved_at_end_of_forward = self.held_bytes
        self.ledger_held.append(self.ledger.saved_bytes)

    def backward_begins(self, node: Node) -> None:
        self.ledger.backward_begins(node)
        self._held_before = self.held_bytes
        self._uses = self._note(node)
        self._incoming = (weakref.ref(root(node.grad)), node.grad.nbytes)

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        self.ledger.backward_ended(node, edges)
        self.ledger_held.append(self.ledger.saved_bytes)
        step = STEPS[-1 - len(self.backward_steps)]
        wanted = [name for name, edge in zip(step.inputs, edges, strict=True) if edge is not None]
        incoming, incoming_bytes = self._incoming
        self.backward_steps.append(
            BackwardStep(
                step.backward_equation,
                step.backward_formula,
                yields=tuple(f"dL/d{name}" for name in wanted),
                uses=self._uses,
                freed_bytes=self._held_before - self.held_bytes,
                held_bytes=self.held_bytes,
                dropped=f"dL/d{step.output}",
                dropped_bytes=incoming_bytes if incoming() is None else 0,
                gradient_bytes=self.ledger.live()["gradients"],
                correction=step.correction,
            )
        )

    def backward_pass_ended(self) -> None:
        self.ledger.backward_pass_ended()

    def forward_steps(self) -> tuple[ForwardStep, ...]:
        """The ledger's rows, by the notes' names."""
        return tuple(
            ForwardStep(step.equation, step.formula, row.output_shape, keeps, row.saved_bytes, row.shared_bytes)
            for step, row, keeps in zip(STEPS, self.ledger.rows, self.keeps, strict=True)
        )

    def _note(self, node: Node) -> tuple[str, ...]:
        """The names of what a call keeps; what the step itself has made is followed from now on."""
        names = []
        for _, value in node.saved():
            for array in leaves(value):
                buffer = root(array)
                names.append(self._names[id(buffer)])
                if id(buffer) not in self._arguments:
                    self._saved.setdefault(id(buffer), weakref.ref(buffer))
        return tuple(names)


def run(problem: Problem) -> tuple[Recorder, float]:
    """Forward and backward on a tape of their own, under watch: the record and the loss."""
    recorder = Recorder(problem.arguments)
    state = current()
    before, state.observer = state.observer, recorder
    try:
        with Tape():
            loss = problem.model.loss(Tensor(problem.x), problem.y)
            loss.backward()
    finally:
        state.observer = before
    recorder.ledger.finish()
    return recorder, float(loss)


# -- section 3


@dataclass(frozen=True)
class Forward(Section):
    """The forward pass, and the chain rule of Eq. 13 by explicit Jacobians on one image."""

    data: str
    batch: int
    dtype: str
    loss: float
    parameter_bytes: int
    input_bytes: int
    steps: tuple[ForwardStep, ...]
    saved_bytes: int
    jacobian_bytes: int
    chain_rule: Check
    rows_sum: Check

    @property
    def checks(self) -> Sequence[Check]:
        return (self.rows_sum, self.chain_rule)


def forward(seed: int) -> Forward:
    """Section 3: Eq. 11 on real data, and Eq. 13."""
    problem = Problem.make(seed)
    recorder, loss = run(problem)
    steps = recorder.forward_steps()
    saved = recorder.ledger.saved_at_end_of_forward or 0
    chain_rule, jacobian_bytes = _chain_rule(seed)
    return Forward(
        data="digits",
        batch=len(problem.x),
        dtype=problem.x.dtype.name,
        loss=loss,
        parameter_bytes=sum(p.nbytes for p in problem.parameters.values()),
        input_bytes=problem.x.nbytes + problem.y.nbytes,
        steps=steps,
        saved_bytes=saved,
        jacobian_bytes=jacobian_bytes,
        chain_rule=chain_rule,
        rows_sum=Check.near(
            "the steps' saved bytes add up to what the tape held", "11", sum(s.saved_bytes for s in steps), saved, 0.0
        ),
    )


def _chain_rule(seed: int) -> tuple[Check, int]:
    """Eq. 13 against loss.backward() in float64, and the bytes of the Jacobians that it took."""
    problem = Problem.make(seed, "float64", batch=1).first()
    run(problem)
    sizes: list[int] = []

    def counted(op: Op, d_out: Array, inputs: Sequence[Array]) -> tuple[Array, ...]:
        made = jacobians(op, inputs)
        sizes.append(sum(jacobian.nbytes for jacobian in made))
        return summed(made, d_out)

    found, given = gradients_by(counted, problem.variables()), problem.gradients()
    claim = "the chain rule on explicit Jacobians gives the six gradients of Eq. 12"
    return Check.near(claim, "13", _flat(found), _flat(given), tolerance=1e-12), sum(sizes)


def _flat(gradients: Variables) -> Array:
    return np.concatenate([gradients[name].reshape(-1) for name in PARAMETERS])


# -- section 4.2


@dataclass(frozen=True)
class Backward(Section):
    """The backward pass of Eq. 30, step by step."""

    saved_bytes: int
    gradient_bytes: int
    steps: tuple[BackwardStep, ...]
    same_gradients: Check
    same_account: Check
    all_freed: Check
    all_dropped: Check


def backward(seed: int) -> Backward:
    """Section 4.2: Eq. 30 on the tape, and once more by hand."""
    problem = Problem.make(seed)
    recorder, _ = run(problem)
    steps = tuple(recorder.backward_steps)
    by_hand = gradients_by(by_backward, problem.variables())
    held = [recorder.saved_at_end_of_forward, *(step.held_bytes for step in steps)]
    return Backward(
        saved_bytes=recorder.saved_at_end_of_forward,
        gradient_bytes=recorder.ledger.parameter_gradient_bytes,
        steps=steps,
        same_gradients=Check.same_bits(
            "by hand and by loss.backward(): six bit-identical gradients", "30", by_hand, problem.gradients()
        ),
        same_account=Check.near(
            "what is still there after each step is what the ledger has it hold", "30", held, recorder.ledger_held, 0.0
        ),
        all_freed=Check.near("nothing is held at the end", "30", recorder.held_bytes, 0, 0.0),
        all_dropped=Check.holds(
            "each activation gradient is gone once it is consumed", "30", all(step.dropped_bytes for step in steps)
        ),
    )
