"""The judge of every plan: its cost, its peak, and whether each of its actions can be done at all.

The memory model, used by every planner. Stage i reads activation i and makes activation i + 1; there are n stages.

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
      stage, dL/d(activation n), which whoever asks for backward brings along. It needs that every later stage has
      been reversed and that activation i, the saves of stage i, activation i + 1 and its gradient are live. After
      it the last three are dropped, and so is activation i, unless the saves of stage i - 1 are live: its output
      belongs to them, and nobody else needs it any more.
    - ``Drop``: nothing. The chain's input is its caller's and can't be dropped.

A plan ends with every stage reversed, each once, the last stage first. Its cost is that of every forward and backward
in it, summed exactly and rounded once, so that it does not depend on the order of the actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from memback.errors import MembackError, UsageError
from memback.plans.actions import Action, Backward, Drop, Forward, Keep, Plan, Stored
from memback.plans.stage import Stage
from memback.units import format_bytes

__all__ = [
    "BudgetError",
    "Chain",
    "IllegalActionError",
    "Live",
    "Moment",
    "State",
    "finish",
    "replay",
    "simulate",
    "within",
]


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

    def __init__(self, index: int, action: Action | None, reason: str) -> None:
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
    """What is held between two actions: bit i of ``outputs`` is activation i, bit i of ``saves`` the saves of stage i.

    Stages from ``remaining`` on have been reversed. The byte counts follow from the rest.
    """

    outputs: int
    saves: int
    remaining: int
    output_bytes: int
    save_bytes: int

    def holds(self, activation: int) -> bool:
        """Whether an activation is live."""
        return bool(self.outputs >> activation & 1)

    def saved(self, stage: int) -> bool:
        """Whether a stage's saves are live."""
        return stage >= 0 and bool(self.saves >> stage & 1)


class Chain:
    """Stages with the sizes of everything around them: the memory model as a machine that takes actions.

    Raises:
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """

    def __init__(self, stages: Sequence[Stage], input_bytes: int = 0) -> None:
        if not stages:
            raise UsageError("a chain without stages has nothing to plan; give at least one stage")
        if input_bytes < 0:
            raise UsageError(f"input_bytes must be from 0 up, not {input_bytes}")
        self.stages = tuple(stages)
        self.input_bytes = int(input_bytes)
        self.activation_bytes = (0, *(stage.output_bytes for stage in stages))
        """Bytes of activation 0 … n; the input is counted apart."""
        self.gradient_bytes = (self.input_bytes, *(stage.output_gradient_bytes for stage in stages))
        """Bytes of dL/d(activation 0 … n)."""
        made = [0]
        for stage in reversed(stages):
            made.append(made[-1] + stage.parameter_gradient_bytes)
        self.parameter_gradient_bytes = tuple(reversed(made))
        """Bytes of the parameter gradients of the stages from 0 … n on."""

    def __len__(self) -> int:
        return len(self.stages)

    def start(self) -> State:
        """Nothing has run; only the chain's input is there."""
        return State(1, 0, len(self), 0, 0)

    def why_not(self, state: State, action: Action) -> str | None:
        """Why an action can't be done, or None if it can."""
        i = action.stage
        if not 0 <= i < len(self):
            return f"there is no stage {i} in a chain of {len(self)}"
        match action:
            case Forward():
                return self._why_not_forward(state, i, action.keep)
            case Backward():
                return self._why_not_backward(state, i)
            case Drop(_, Stored.OUTPUT):
                return None if state.holds(i + 1) else f"the output of stage {i} is not held"
            case Drop():
                return None if state.saved(i) else f"the saves of stage {i} are not held"

    def _why_not_forward(self, state: State, i: int, keep: Keep) -> str | None:
        if i >= state.remaining:
            return f"stage {i} has been reversed already"
        if not state.holds(i):
            return f"the input of stage {i} is not held"
        if state.holds(i + 1):
            return f"the output of stage {i} is held already; drop it first"
        if keep is Keep.EVERYTHING and state.saved(i):
            return f"the saves of stage {i} are held already; drop them first"
        if keep is not Keep.EVERYTHING and not self.stages[i].sweeps:
            return f"stage {i} can't be run again, so it has to keep everything"
        if keep is Keep.NOTHING and i == 0:
            return "the chain's input belongs to its caller and can't be dropped; keep it"
        return None

    def _why_not_backward(self, state: State, i: int) -> str | None:
        if i >= state.remaining:
            return f"stage {i} has been reversed already"
        if i < state.remaining - 1:
            return f"stage {state.remaining - 1} has to be reversed first"
        for held, what in (
            (state.holds(i), "input"),
            (state.saved(i), "saves"),
            (state.holds(i + 1), "output"),
        ):
            if not held:
                return f"the {what} of stage {i} {'are' if what == 'saves' else 'is'} not held"
        return None

    def during(self, state: State, action: Action) -> Live:
        """What is live during an action that can be done."""
        i, r = action.stage, state.remaining
        activations, saves, workspace = state.output_bytes, state.save_bytes, 0
        gradients = self.gradient_bytes[r] if r < len(self) else 0
        made = self.parameter_gradient_bytes[r]
        if isinstance(action, Forward):
            activations += self.activation_bytes[i + 1]
            saves += self.stages[i].saved_bytes if action.keep is Keep.EVERYTHING else 0
            whole = action.keep is Keep.EVERYTHING
            workspace = self.stages[i].forward_workspace if whole else self.stages[i].workspace_of_sweep
        elif isinstance(action, Backward):
            gradients = self.gradient_bytes[r] + self.gradient_bytes[i]
            made = self.parameter_gradient_bytes[i]
            workspace = self.stages[i].backward_workspace
        return Live(self.input_bytes, activations, saves, gradients, made, workspace)

    def after(self, state: State, action: Action) -> State:
        """What is held after an action that can be done."""
        i = action.stage
        outputs, saves, remaining, output_bytes, save_bytes = state
        if isinstance(action, Forward):
            outputs |= 1 << i + 1
            output_bytes += self.activation_bytes[i + 1]
            if action.keep is Keep.EVERYTHING:
                saves |= 1 << i
                save_bytes += self.stages[i].saved_bytes
            elif action.keep is Keep.NOTHING:
                outputs ^= 1 << i
                output_bytes -= self.activation_bytes[i]
            return State(outputs, saves, remaining, output_bytes, save_bytes)
        backward = isinstance(action, Backward)
        if backward or action == Drop(i, Stored.OUTPUT):
            outputs ^= 1 << i + 1
            output_bytes -= self.activation_bytes[i + 1]
        if backward or action == Drop(i, Stored.SAVES):
            saves ^= 1 << i
            save_bytes -= self.stages[i].saved_bytes
        if backward:
            remaining = i
            if i > 0 and not state.saved(i - 1):
                outputs ^= 1 << i
                output_bytes -= self.activation_bytes[i]
        return State(outputs, saves, remaining, output_bytes, save_bytes)


def replay(chain: Chain, actions: Iterable[Action]) -> tuple[float, Moment]:
    """Do the actions one by one; give their cost and the first of the moments at which most is live.

    Raises:
        IllegalActionError: an action can't be done, or a stage is left to be reversed.
    """
    state, peak, most, index = chain.start(), None, -1, -1
    runs: Counter[int] = Counter()
    for index, action in enumerate(actions):
        reason = chain.why_not(state, action)
        if reason is not None:
            raise IllegalActionError(index, action, reason)
        live = chain.during(state, action)
        if live.total > most:
            peak, most = Moment(index, action, live), live.total
        if isinstance(action, Forward):
            runs[action.stage] += 1
        state = chain.after(state, action)
    if state.remaining or peak is None:
        raise IllegalActionError(index + 1, None, f"stage {state.remaining - 1} has not been reversed")
    return total_cost(chain.stages, runs), peak


def total_cost(stages: Sequence[Stage], runs: Counter[int]) -> float:
    """Cost of running each stage forward as often as ``runs`` says and backward once; whole if all costs are."""
    terms: Counter[float] = Counter()
    for index, stage in enumerate(stages):
        terms[stage.forward_cost] += runs[index]
        terms[stage.backward_cost] += 1
    total = sum((Fraction(cost) * times for cost, times in terms.items()), Fraction())
    return int(total) if all(isinstance(cost, int) for cost in terms) else float(total)


def finish(chain: Chain, actions: Sequence[Action], optimality: str) -> Plan:
    """A plan of these actions, with the cost and the peak that a replay finds."""
    cost, peak = replay(chain, actions)
    return Plan(tuple(actions), cost, peak.live.total, optimality)


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
    cost, peak = replay(Chain(stages, input_bytes), plan.actions if isinstance(plan, Plan) else plan)
    return cost, peak.live.total
