"""The judge of every plan: its cost, its peak, and whether each of its actions can be done at all.

:class:`Memory` judges plans for chains and for graphs: a chain is a graph in a line, whose node i is stage i. Graphs'
memory model is in :mod:`memback.plans.graph.search`; that of chains, used by all their planners, is this. Stage i reads
activation i and makes activation i + 1; there are n stages.

Live between actions:
    - activations: each that has been made and not dropped;
    - saves of each stage that has run keeping everything and has not been reversed, nor its saves dropped;
    - once backward has begun, dL/d(activation r), where stages r … n - 1 have been reversed;
    - the parameter gradients of the stages that have been reversed: they live on to the end;
    - the chain's input. With ``input_bytes = 0`` it is an argument (a model's input): it exists before the step, needs
      no gradient and is counted nowhere. Otherwise it is an activation of what comes before the chain: nothing but
      its caller can make it again, so it is counted at every moment, and the first stage's backward makes its
      gradient, which has its size.

Live during an action, besides what was live before it:
    - ``Forward(i)``: the output, the forward workspace and, when everything is kept, the saves in the making. It
      needs activation i. Keeping nothing, activation i is dropped after it. An output that is held already must be
      dropped before it is made again, and a stage that has been reversed is not run again.
    - ``Backward(i)``: dL/d(activation i), the backward workspace, the stage's parameter gradients and, for the last
      stage, dL/d(activation n), which backward begins with. It needs that every later stage has
      been reversed and that activation i, the saves of stage i, activation i + 1 and its gradient are live. After
      it the last three are dropped, and so is activation i, unless the saves of stage i - 1 are live: its output
      belongs to them, and is of no other use.
    - ``Drop``: nothing. The chain's input is its caller's and can't be dropped.

A plan ends with every stage reversed, each once, the last stage first. Its cost is that of every forward and backward
in it, summed exactly and rounded once, so that it does not depend on the order of the actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from memback.errors import MembackError, UsageError
from memback.plans.actions import Action, Backward, Compute, Forward, GraphAction, Keep, Plan, Stored
from memback.plans.stage import Stage
from memback.units import format_bytes

__all__ = [
    "BudgetError",
    "Chain",
    "IllegalActionError",
    "Live",
    "Memory",
    "Moment",
    "Outcome",
    "State",
    "finish",
    "judge",
    "replay",
    "simulate",
    "within",
]

_A = TypeVar("_A", bound=Action | GraphAction)


class Live(NamedTuple):
    """Live bytes at a moment, by what they are."""

    input: int
    activations: int
    saves: int
    gradients: int
    parameter_gradients: int
    workspace: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)

    def __str__(self) -> str:
        parts = (
            f"{name.replace('_', ' ')} {format_bytes(size)}" for name, size in zip(self._fields, self, strict=True)
        )
        return ", ".join(part for part, size in zip(parts, self, strict=True) if size) or "nothing"


@dataclass(frozen=True, slots=True)
class Moment:
    """What is live during one action of a plan."""

    index: int
    action: Action
    live: Live

    def __str__(self) -> str:
        return f"action {self.index} ({self.action}): {self.live}"


class IllegalActionError(MembackError):
    """A plan asks for what can't be done.

    ``index`` is that of the first such action; ``action`` is None where the plan ends too early.
    """

    def __init__(self, index: int, action: Action | GraphAction | None, reason: str) -> None:
        super().__init__(f"action {index} of the plan ({action or 'its end'}) is not possible: {reason}")
        self.index = index
        self.action = action
        self.reason = reason


class BudgetError(MembackError):
    """No plan of a kind fits; ``minimum_bytes`` is the least budget for which one does, ``peak`` its largest moment."""

    def __init__(self, what: str, budget: int, peak: Moment) -> None:
        self.budget = budget
        self.minimum_bytes = peak.live.total
        self.peak = peak
        super().__init__(
            f"{what} needs {format_bytes(self.minimum_bytes)}, more than the budget of {format_bytes(budget)};"
            f" raise the budget to that. Its peak is at {peak}"
        )


class State(NamedTuple):
    """What is stored between two actions: bit 2 i stands for the saves of node i, bit 2 i + 1 for its output.

    Attributes:
        stored: these bits.
        size: of what is stored, in bytes.
        remaining: nodes from this one on have been reversed.
        ran: how many nodes of a graph's forward pass have run, and one more once something has followed the pass.
    """

    stored: int
    size: int
    remaining: int
    ran: int

    def saved(self, node: int) -> bool:
        """Whether a node's saves are stored."""
        return bool(self.stored >> 2 * node & 1)


Outcome: TypeAlias = tuple[int, State]
"""An action that can be done: the most bytes that are live during it, and what is stored after it."""


class Memory(ABC, Generic[_A]):
    """A memory model as a machine that takes actions.

    Attributes, by node:
        output_bytes, saved_bytes: sizes of its output and of its saves.
        costs: of running it, and of its backward.
        uses, needs: what running it reads, and what its backward reads, as bits of :class:`State`.
        before, during: bytes besides values that are live while nodes run before its backward, and during that.
        moments: of the forward pass, where the model itself makes it: the outputs that are there whether they are
            stored or not, and the bytes besides. Those of what follows the pass are under the number of nodes.
    """

    node, whole, held, drop = "node", "graph", "stored", "discard"

    output_bytes: Sequence[int]
    saved_bytes: Sequence[int]
    costs: Sequence[tuple[float, float]]
    uses: Sequence[int]
    needs: Sequence[int]
    before: Sequence[int]
    during: Sequence[int]
    moments: Mapping[int, Sequence[tuple[Iterable[int], int]]] | None = None

    def __len__(self) -> int:
        return len(self.costs)

    def start(self) -> State:
        """Nothing has run."""
        return State(0, 0, len(self), len(self) + 1 if self.moments is None else 0)

    @abstractmethod
    def do(self, state: State, action: _A) -> Outcome | str:
        """What an action takes and leaves, or why it can't be done."""

    def _run(self, state: State, i: int, saves: bool, workspace: int) -> Outcome | str:
        stored, size, remaining, ran = state
        n, made = len(self.costs), (2 | saves) << 2 * i
        if ran < n and i != ran:
            return f"the forward pass comes to {self.node} {ran} first"
        if i >= remaining:
            return f"{self.node} {i} has been reversed already"
        if ran >= n and (lacking := self.uses[i] & ~stored):
            return self._lacks(i, *_lowest(lacking), "uses")
        if stored & made:
            output = stored & made > 1 << 2 * i
            return f"{self._value(i, output)} {self.held} already; {self.drop} {'it' if output else 'them'} first"
        kept = self.saved_bytes[i] if saves else 0
        after = State(stored | made, size + self.output_bytes[i] + kept, remaining, min(ran, n) + 1)
        if ran < n:
            return self._passing(state, kept), after
        live = self.before[remaining - 1] + after.size + workspace
        return (live if ran > n else max(live, self._passing(state))), after

    def _reverse(self, state: State, i: int) -> Outcome | str:
        stored, size, remaining, ran = state
        n = len(self.costs)
        if ran < n:
            return f"the forward pass has not come to {self.node} {ran} yet"
        if i >= remaining:
            return f"{self.node} {i} has been reversed already"
        if i < remaining - 1:
            return f"{self.node} {remaining - 1} has to be reversed first"
        if lacking := self.needs[i] & ~stored:
            return self._lacks(i, *_lowest(lacking), "needs")
        live = self.during[i] + size
        size -= self.output_bytes[i] * (stored >> 2 * i + 1 & 1) + self.saved_bytes[i] * (stored >> 2 * i & 1)
        after = State(stored & ~(3 << 2 * i), size, i, n + 1)
        return (live if ran > n else max(live, self._passing(state))), after

    def _drop(self, state: State, i: int, what: Stored) -> Outcome | str:
        output = what is Stored.OUTPUT
        if not state.stored >> 2 * i + output & 1:
            return f"{self._value(i, output)} not {self.held}"
        size = state.size - (self.output_bytes if output else self.saved_bytes)[i]
        return 0, State(state.stored ^ 1 << 2 * i + output, size, state.remaining, state.ran)

    def _value(self, i: int, output: bool) -> str:
        return f"the output of {self.node} {i} is" if output else f"the saves of {self.node} {i} are"

    def _lacks(self, i: int, v: int, output: bool, why: str) -> str:
        """The message that node i uses, or needs, the output or the saves of node v, which are not stored."""
        return (
            f"the output of node {v}, which it {why}, is not stored"
            if output
            else f"{self._value(v, False)} not stored"
        )

    def _passing(self, state: State, saves: int = 0) -> int:
        """The most that is live in the moments that come next, with ``saves`` bytes in the making."""
        sizes, stored, held = self.output_bytes, state.stored, state.size + saves
        moments = self.moments.get(state.ran, ()) if self.moments is not None else ()
        lives = (besides + sum(sizes[v] for v in alive if not stored >> 2 * v + 1 & 1) for alive, besides in moments)
        return max((held + live for live in lives), default=0)


def _lowest(bits: int) -> tuple[int, bool]:
    """The node of the lowest bit, and whether it stands for its output."""
    node, output = divmod((bits & -bits).bit_length() - 1, 2)
    return node, bool(output)


class Chain(Memory[Action]):
    """The memory model of stages, with the sizes of everything around them.

    Raises:
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """

    node, whole, held, drop = "stage", "chain", "held", "drop"

    def __init__(self, stages: Sequence[Stage], input_bytes: int = 0) -> None:
        if not stages:
            raise UsageError("a chain without stages has nothing to plan; give at least one stage")
        if input_bytes < 0:
            raise UsageError(f"input_bytes must be from 0 up, not {input_bytes}")
        self.stages = tuple(stages)
        self.input_bytes = int(input_bytes)
        self.output_bytes = [stage.output_bytes for stage in stages]
        self.saved_bytes = [stage.saved_bytes for stage in stages]
        self.costs = [(stage.forward_cost, stage.backward_cost) for stage in stages]
        self.uses = [1 << 2 * i >> 1 for i in range(len(stages))]
        self.needs = [used | 3 << 2 * i for i, used in enumerate(self.uses)]
        self.activation_bytes = (0, *self.output_bytes)
        """Bytes of activation 0 … n; the input is counted apart."""
        self.gradient_bytes = (self.input_bytes, *(stage.output_gradient_bytes for stage in stages))
        """Bytes of dL/d(activation 0 … n)."""
        made = accumulate((stage.parameter_gradient_bytes for stage in reversed(stages)), initial=0)
        self.parameter_gradient_bytes = tuple(made)[::-1]
        """Bytes of the parameter gradients of the stages from 0 … n on."""
        beside = zip((*self.gradient_bytes[1:-1], 0), self.parameter_gradient_bytes[1:], strict=True)
        self.before = [input_bytes + gradient + parameters for gradient, parameters in beside]
        self.during = [
            input_bytes + sum(self._reversal(i)) + stage.backward_workspace for i, stage in enumerate(stages)
        ]

    def _reversal(self, i: int) -> tuple[int, int]:
        """Bytes of gradients of activations, and of parameters, during the backward of stage i."""
        return self.gradient_bytes[i] + self.gradient_bytes[i + 1], self.parameter_gradient_bytes[i]

    def do(self, state: State, action: Action) -> Outcome | str:
        i = action.stage
        if not 0 <= i < len(self.stages):
            return f"there is no stage {i} in a chain of {len(self)}"
        if isinstance(action, Backward):
            done = self._reverse(state, i)
            frees_input = i > 0 and not state.saved(i - 1)
        elif isinstance(action, Forward):
            whole, stage = action.keep is Keep.EVERYTHING, self.stages[i]
            done = self._run(state, i, whole, stage.forward_workspace if whole else stage.workspace_of_sweep)
            frees_input = action.keep is Keep.NOTHING
            if not isinstance(done, str) and not whole and not stage.sweeps:
                return f"stage {i} can't be run again, so it has to keep everything"
            if not isinstance(done, str) and frees_input and i == 0:
                return "the chain's input belongs to its caller and can't be dropped; keep it"
        else:
            return self._drop(state, i, action.stored)
        if frees_input and not isinstance(done, str):
            live, (stored, size, remaining, ran) = done
            return live, State(stored ^ 1 << 2 * i - 1, size - self.output_bytes[i - 1], remaining, ran)
        return done

    def _lacks(self, i: int, v: int, output: bool, why: str) -> str:
        return f"{self._value(i, output)} not held" if v == i else f"the input of stage {i} is not held"

    def live(self, size: int, state: State, action: Action) -> Live:
        """What the ``size`` bytes are that are live during an action."""
        i, r, made = action.stage, state.remaining, state.stored
        gradients, parameters = self.gradient_bytes[r] if r < len(self) else 0, self.parameter_gradient_bytes[r]
        if isinstance(action, Backward):
            gradients, parameters = self._reversal(i)
        elif isinstance(action, Forward):
            made |= (2 | (action.keep is Keep.EVERYTHING)) << 2 * i
        activations = sum(output for v, output in enumerate(self.output_bytes) if made >> 2 * v + 1 & 1)
        saves = sum(saved for v, saved in enumerate(self.saved_bytes) if made >> 2 * v & 1)
        workspace = size - self.input_bytes - activations - saves - gradients - parameters
        return Live(self.input_bytes, activations, saves, gradients, parameters, workspace)


def judge(memory: Memory[_A], actions: Iterable[_A]) -> tuple[float, int, tuple[int, _A, State]]:
    """Do the actions one by one; give their cost, their peak in bytes, and the first action that has it.

    Raises:
        IllegalActionError: an action can't be done, or something is left to be reversed.
    """
    state, most, where, index = memory.start(), -1, None, -1
    runs = [0] * len(memory)
    for index, action in enumerate(actions):
        done = memory.do(state, action)
        if isinstance(done, str):
            raise IllegalActionError(index, action, done)
        if done[0] > most:
            most, where = done[0], (index, action, state)
        if isinstance(action, (Forward, Compute)):
            runs[getattr(action, memory.node)] += 1
        state = done[1]
    if state.remaining or where is None:
        raise IllegalActionError(index + 1, None, f"{memory.node} {state.remaining - 1} has not been reversed")
    return _cost(memory.costs, runs), most, where


def _cost(costs: Sequence[tuple[float, float]], runs: Sequence[int]) -> float:
    """Cost of running each node as often as ``runs`` says and backward once; whole if all costs are."""
    terms: Counter[float] = Counter()
    for (forward, backward), times in zip(costs, runs, strict=True):
        terms[forward] += times
        terms[backward] += 1
    total = sum((cost if isinstance(cost, int) else Fraction(cost)) * times for cost, times in terms.items())
    return total if isinstance(total, int) else float(total)


def replay(chain: Chain, actions: Iterable[Action]) -> tuple[float, Moment]:
    """Cost of the actions, and the first of the moments at which most is live.

    Raises:
        IllegalActionError: an action can't be done, or a stage is left to be reversed.
    """
    cost, size, (index, action, state) = judge(chain, actions)
    return cost, Moment(index, action, chain.live(size, state, action))


def finish(chain: Chain, actions: Sequence[Action], optimality: str) -> Plan:
    """A plan of these actions, with the cost and the peak that a replay finds."""
    return Plan(tuple(actions), *judge(chain, actions)[:2], optimality)


def within(chain: Chain, actions: Sequence[Action], budget: int, what: str, optimality: str) -> Plan:
    """A plan of these actions, if it is within the budget (bytes).

    Raises:
        BudgetError: it is not; ``what`` names the actions.
    """
    cost, peak = replay(chain, actions)
    if peak.live.total > budget:
        raise BudgetError(what, budget, peak)
    return Plan(tuple(actions), cost, peak.live.total, optimality)


def simulate(stages: Sequence[Stage], plan: Plan | Iterable[Action], input_bytes: int = 0) -> tuple[float, int]:
    """Cost, in the stages' unit, and peak, in bytes, of a plan or its actions; the module says what is live when.

    Raises:
        IllegalActionError: an action can't be done, or the plan leaves a stage unreversed; it names the first one.
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """
    return judge(Chain(stages, input_bytes), plan.actions if isinstance(plan, Plan) else plan)[:2]
