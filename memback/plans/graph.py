"""Plans for graphs that are no chains: skip connections, dense blocks, single ops.

The memory model. A graph is its nodes in the order in which the forward pass runs them; backward reverses them in the
opposite order. A node makes one output, and *saves*: residuals that its own backward alone needs. The outputs that a
node reads when it runs are its ``uses``, those that its backward reads its ``needs``.

Live between actions:
    - stored values: outputs and saves that have been computed and neither discarded nor reversed;
    - during the forward pass, outputs that later nodes of it still read, or that its caller holds: they are there
      whether they are stored or not. An output that is both is counted once;
    - what is there besides values: gradients of activations and, once made, of parameters.

Live during an action, besides what was live before it:
    - ``Compute(i)``: the output, with ``saves`` these in the making, and the workspace. It needs that the outputs that
      node i uses are live and its own is not stored. The first action that is no part of the forward pass finds all
      that comes between the two passes (the loss) done.
    - ``Reverse(i)``: the gradients that it makes and the workspace. It needs that every later node has been reversed,
      that the outputs that it needs are stored, and its saves, where it has any. After it its own are dropped.
    - ``Discard``: nothing. After ``Compute`` in the forward pass it says that a value is not stored.

The forward pass runs every node once, in order, before anything is reversed: the model itself does that. A plan ends
with every node reversed. Its cost is that of all its computations and reversals.

A schedule is *over the fixed order* if between two reversals nodes are computed in the graph's order, each at most
once (Jain et al. 2020, "Checkmate", arXiv 1910.02653, section 4), and none before the reversal of a node that needs no
value. :mod:`memback.plans.milp` finds the cheapest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from numbers import Real
from typing import NamedTuple

from memback.errors import MembackError, UsageError
from memback.plans.actions import Compute, Discard, GraphAction, GraphPlan, Reverse, Stored
from memback.units import format_bytes

__all__ = [
    "Graph",
    "GraphBudgetError",
    "IllegalGraphActionError",
    "Node",
    "Running",
    "finish",
    "replay",
    "search",
    "simulate",
    "solve",
]


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a graph.

    Args:
        cost: of running it, in any unit (FLOPs, seconds), the same for all nodes.
        output_bytes: of its output.
        uses: the nodes whose outputs it reads when it runs, all before it.
        needs: the nodes whose outputs its backward reads, none after it; itself, if its own is among them.
        saved_bytes: of its saves.
        workspace: the most that running it holds at once besides what it reads and makes, in bytes.
        backward_cost: of its backward.
        gradient_bytes: of dL/d(output); None stands for ``output_bytes``.
        backward_workspace: the most that its backward holds at once besides values and gradients.
        parameter_gradient_bytes: of the parameter gradients that its backward makes; they live on to the end.
    """

    cost: float
    output_bytes: int
    uses: tuple[int, ...] = ()
    needs: tuple[int, ...] = ()
    saved_bytes: int = 0
    workspace: int = 0
    backward_cost: float = 0
    gradient_bytes: int | None = None
    backward_workspace: int = 0
    parameter_gradient_bytes: int = 0

    @property
    def output_gradient_bytes(self) -> int:
        """Bytes of dL/d(output)."""
        return self.output_bytes if self.gradient_bytes is None else self.gradient_bytes


class Running(NamedTuple):
    """A moment of the forward pass.

    ``node`` is running then; the number of nodes stands for what comes after all of them, up to backward. ``alive`` are
    the outputs that are there whether they are stored or not, its own among them once it is being made; ``besides`` are
    the bytes that no value accounts for.
    """

    node: int
    alive: frozenset[int]
    besides: int


@dataclass(frozen=True)
class Graph:
    """Nodes in a fixed order, with what is live around them.

    Args:
        nodes: in the order in which forward runs them.
        running: the moments of the forward pass; by default one a node, in which outputs live until their last use.
        before: by node, the bytes besides values that are live when nodes are computed for its backward; by default the
            gradients of activations and parameters that have been made.
        during: by node, the same during its backward.

    Raises:
        UsageError: there is no node, a size or a cost is negative or not a number, or a node uses a later one.
    """

    nodes: tuple[Node, ...]
    running: tuple[Running, ...] = ()
    before: tuple[int, ...] = ()
    during: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        nodes = tuple(self.nodes)
        if not nodes:
            raise UsageError("a graph without nodes has nothing to plan; give at least one node")
        for number, node in enumerate(nodes):
            _check(number, node)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "running", tuple(self.running or _running(self)))
        before, during = _gradients(self)
        object.__setattr__(self, "before", tuple(self.before or before))
        object.__setattr__(self, "during", tuple(self.during or during))
        if not len(self.before) == len(self.during) == len(nodes):
            raise UsageError(f"`before` and `during` must have an entry for each of the {len(nodes)} nodes")

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """By node, those that use its output, in order."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            for used in sorted(set(node.uses)):
                users[used].append(number)
        return tuple(map(tuple, users))

    @cached_property
    def moments(self) -> Mapping[int, Sequence[Running]]:
        """The moments of the forward pass by the node that is running then."""
        moments: dict[int, list[Running]] = {}
        for moment in self.running:
            moments.setdefault(moment.node, []).append(moment)
        return moments


def _check(number: int, node: Node) -> None:
    for name in ("cost", "backward_cost"):
        cost = getattr(node, name)
        if not isinstance(cost, Real) or not math.isfinite(cost) or cost < 0:
            raise UsageError(f"{name} of node {number} must be a finite number from 0 up, not {cost!r}")
    sizes = ("output_bytes", "saved_bytes", "workspace", "backward_workspace", "parameter_gradient_bytes")
    for name in (*sizes, "output_gradient_bytes"):
        size = getattr(node, name)
        if not isinstance(size, int) or size < 0:
            raise UsageError(f"{name} of node {number} must be a whole number of bytes from 0 up, not {size!r}")
    if not all(0 <= used < number for used in node.uses):
        raise UsageError(f"node {number} uses {node.uses}: it can use the outputs of earlier nodes alone")
    if not all(0 <= needed <= number for needed in node.needs):
        raise UsageError(f"node {number} needs {node.needs} for backward: no later node's output can be among these")


def _running(graph: Graph) -> Iterator[Running]:
    """Forward by the nodes' own sizes: an output lives until its last use, one without uses to the end."""
    n = len(graph.nodes)
    last = [users[-1] if users else n for users in graph.users]
    for number, node in enumerate(graph.nodes):
        yield Running(number, frozenset(v for v in range(number + 1) if last[v] >= number), node.workspace)


def _gradients(graph: Graph) -> tuple[list[int], list[int]]:
    """Bytes of gradients before each node's backward, and of gradients and workspace during it."""
    n = len(graph.nodes)
    before, during = [0] * n, [0] * n
    first = [users[-1] if users else n for users in graph.users]  # whose backward makes dL/d(output) first
    made = 0
    for b in reversed(range(n)):
        node = graph.nodes[b]
        before[b] = made + sum(graph.nodes[v].output_gradient_bytes for v in range(b + 1) if first[v] > b)
        new = sum(graph.nodes[v].output_gradient_bytes for v in range(b) if first[v] == b)
        during[b] = before[b] + new + node.backward_workspace + node.parameter_gradient_bytes
        made += node.parameter_gradient_bytes
    return before, during


# -- the judge


class IllegalGraphActionError(MembackError):
    """A plan for a graph asks for what can't be done; ``index`` is that of the first such action."""

    def __init__(self, index: int, action: GraphAction | None, reason: str) -> None:
        super().__init__(f"action {index} of the plan ({action or 'its end'}) is not possible: {reason}")
        self.index = index
        self.action = action
        self.reason = reason


class GraphBudgetError(MembackError):
    """No schedule over the fixed order fits; ``minimum_bytes`` is the least peak that was found."""

    def __init__(self, budget: int, leanest: GraphPlan) -> None:
        self.budget = budget
        self.minimum_bytes = leanest.peak_bytes
        self.leanest = leanest
        super().__init__(
            f"no schedule over the fixed order of this graph is known to fit {format_bytes(budget)}: the leanest that"
            f" was found needs {format_bytes(self.minimum_bytes)}; raise the budget to that"
        )


class _Memory:
    """The memory model as a machine that takes actions."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.outputs: set[int] = set()
        self.saves: set[int] = set()
        self.remaining = len(graph)
        self.ran = 0
        self.between = False
        """Whether the forward pass is over and what follows it has been done."""

    @property
    def forward(self) -> bool:
        """Whether the forward pass is going on."""
        return self.ran < len(self.graph)

    def why_not(self, action: GraphAction) -> str | None:
        """Why an action can't be done, or None if it can."""
        i = action.node
        if not 0 <= i < len(self.graph):
            return f"there is no node {i} in a graph of {len(self.graph)}"
        match action:
            case Compute(_, saves):
                return self._why_not_compute(i, saves)
            case Reverse():
                return self._why_not_reverse(i)
            case Discard(_, Stored.OUTPUT):
                return None if i in self.outputs else f"the output of node {i} is not stored"
            case Discard():
                return None if i in self.saves else f"the saves of node {i} are not stored"

    def _why_not_compute(self, i: int, saves: bool) -> str | None:
        if self.forward and i != self.ran:
            return f"the forward pass comes to node {self.ran} first"
        if i >= self.remaining:
            return f"node {i} has been reversed already"
        if i in self.outputs:
            return f"the output of node {i} is stored already; discard it first"
        if saves and i in self.saves:
            return f"the saves of node {i} are stored already; discard them first"
        if not self.forward:
            for used in self.graph.nodes[i].uses:
                if used not in self.outputs:
                    return f"the output of node {used}, which it uses, is not stored"
        return None

    def _why_not_reverse(self, i: int) -> str | None:
        if self.forward:
            return f"the forward pass has not come to node {self.ran} yet"
        if i >= self.remaining:
            return f"node {i} has been reversed already"
        if i < self.remaining - 1:
            return f"node {self.remaining - 1} has to be reversed first"
        for needed in self.graph.nodes[i].needs:
            if needed not in self.outputs:
                return f"the output of node {needed}, which it needs, is not stored"
        if self.graph.nodes[i].saved_bytes and i not in self.saves:
            return f"the saves of node {i} are not stored"
        return None

    def during(self, action: GraphAction) -> int:
        """The largest number of bytes that are live during an action that can be done."""
        if isinstance(action, Discard):
            return 0
        graph, i = self.graph, action.node
        saves = sum(graph.nodes[v].saved_bytes for v in self.saves)
        peak = 0
        if not self.forward and not self.between:
            peak = max((self._live(m) + saves for m in graph.moments.get(len(graph), ())), default=0)
        if isinstance(action, Reverse):
            return max(peak, graph.during[i] + saves + self._bytes(self.outputs))
        saves += graph.nodes[i].saved_bytes if action.saves else 0
        if self.forward:
            return max((self._live(m) + saves for m in graph.moments.get(i, ())), default=0)
        stored = self._bytes(self.outputs) + graph.nodes[i].output_bytes
        return max(peak, graph.before[self.remaining - 1] + stored + saves + graph.nodes[i].workspace)

    def _live(self, moment: Running) -> int:
        return self._bytes(self.outputs | moment.alive) + moment.besides

    def _bytes(self, outputs: Iterable[int]) -> int:
        return sum(self.graph.nodes[v].output_bytes for v in outputs)

    def do(self, action: GraphAction) -> None:
        """Carry out an action that can be done."""
        i = action.node
        if isinstance(action, Discard):
            (self.outputs if action.stored is Stored.OUTPUT else self.saves).discard(i)
            return
        self.between = self.between or not self.forward
        if isinstance(action, Compute):
            self.ran += self.forward
            self.outputs.add(i)
            if action.saves:
                self.saves.add(i)
        else:
            self.remaining = i
            self.outputs.discard(i)
            self.saves.discard(i)


def replay(graph: Graph, actions: Iterable[GraphAction]) -> tuple[float, int, int]:
    """Do the actions one by one: their cost, their peak, and the first action that has it.

    Raises:
        IllegalGraphActionError: an action can't be done, or a node is left to be reversed.
    """
    memory, peak, where, index = _Memory(graph), -1, -1, -1
    runs: Counter[int] = Counter()
    for index, action in enumerate(actions):
        reason = memory.why_not(action)
        if reason is not None:
            raise IllegalGraphActionError(index, action, reason)
        live = memory.during(action)
        if live > peak:
            peak, where = live, index
        runs[action.node] += isinstance(action, Compute)
        memory.do(action)
    if memory.remaining:
        raise IllegalGraphActionError(index + 1, None, f"node {memory.remaining - 1} has not been reversed")
    return _cost(graph, runs), peak, where


def _cost(graph: Graph, runs: Counter[int]) -> float:
    """Cost of running each node as often as ``runs`` says and backward once; whole if all costs are."""
    costs = [(node.cost, runs[number]) for number, node in enumerate(graph.nodes)]
    costs += [(node.backward_cost, 1) for node in graph.nodes]
    total = sum((Fraction(cost) * times for cost, times in costs), Fraction())
    return int(total) if all(isinstance(cost, int) for cost, _ in costs) else float(total)


def simulate(graph: Graph, plan: GraphPlan | Iterable[GraphAction]) -> tuple[float, int]:
    """Cost, in the nodes' unit, and peak, in bytes, of a plan or its actions; the module says what is live when.

    Raises:
        IllegalGraphActionError: an action can't be done, or a node is left to be reversed; it names the first one.
    """
    cost, peak, _ = replay(graph, plan.actions if isinstance(plan, GraphPlan) else plan)
    return cost, peak


def finish(graph: Graph, actions: Sequence[GraphAction], optimality: str, gap: float | None = None) -> GraphPlan:
    """A plan of these actions, with the cost and the peak that a replay finds."""
    cost, peak, _ = replay(graph, actions)
    return GraphPlan(tuple(actions), cost, peak, optimality, gap)


# -- schedules


class Schedule(NamedTuple):
    """What is done in each stage of a schedule over the fixed order; stage b ends with the reversal of node b.

    Attributes:
        outputs, saves: by stage, the nodes whose output or saves are stored when it begins.
        runs: by stage, the nodes that are computed in it.
    """

    outputs: Sequence[frozenset[int]]
    saves: Sequence[frozenset[int]]
    runs: Sequence[frozenset[int]]


def everything(graph: Graph) -> Schedule:
    """The schedule that stores all that backward needs until it is needed last."""
    n = len(graph)
    first = {v: b for b in reversed(range(n)) for v in graph.nodes[b].needs}  # backward comes there last
    return Schedule(
        [frozenset(v for v, until in first.items() if v <= b and until <= b) for b in range(n)],
        [frozenset(v for v in range(b + 1) if graph.nodes[v].saved_bytes) for b in range(n)],
        [frozenset()] * n,
    )


def unfold(graph: Graph, schedule: Schedule) -> list[GraphAction]:
    """The actions of a schedule: what a stage has no use for any more is discarded at the first opportunity."""
    n = len(graph)
    actions: list[GraphAction] = []
    outputs, saves = schedule.outputs[n - 1], schedule.saves[n - 1]
    for i in range(n):
        actions.append(Compute(i, i in saves))
        if i not in outputs:
            actions.append(Discard(i))
    held, saved = set(outputs), set(saves)
    for b in reversed(range(n)):
        after = schedule.outputs[b - 1] if b else frozenset()
        saves_after = schedule.saves[b - 1] if b else frozenset()
        runs = _of_use(graph, b, schedule.runs[b], (held, saved), (after, saves_after))
        _stage(graph, b, runs, (held, saved), (after, saves_after), actions)
    return actions


def _of_use(
    graph: Graph,
    b: int,
    runs: Iterable[int],
    stored: tuple[set[int], set[int]],
    after: tuple[frozenset[int], frozenset[int]],
) -> list[int]:
    """The computations of stage b that give something that is wanted and not stored, in order."""
    wanted = after[0].union(graph.nodes[b].needs)
    saves = after[1].union([b] if graph.nodes[b].saved_bytes else [])
    found = []
    for k in sorted(runs, reverse=True):
        if (k in wanted and k not in stored[0]) or (k in saves and k not in stored[1]):
            found.append(k)
            wanted = wanted.union(graph.nodes[k].uses)
    return found[::-1]


def _stage(
    graph: Graph,
    b: int,
    runs: Sequence[int],
    stored: tuple[set[int], set[int]],
    after: tuple[frozenset[int], frozenset[int]],
    actions: list[GraphAction],
) -> None:
    """Add the actions of stage b, and leave in ``stored`` (outputs, saves) what is stored then."""
    held, saved = stored
    needs = set(graph.nodes[b].needs)
    last = {v: position for position, k in enumerate(runs) for v in graph.nodes[k].uses}
    own = {b} if graph.nodes[b].saved_bytes else set()

    def discard(position: int) -> None:
        stay = needs | after[0] | {v for v, until in last.items() if until > position}
        for v in sorted(held - stay):
            held.discard(v)
            actions.append(Discard(v))
        for v in sorted(saved - own - after[1]):
            saved.discard(v)
            actions.append(Discard(v, Stored.SAVES))

    discard(-1)
    for position, k in enumerate(runs):
        with_saves = k not in saved and (k in own or k in after[1])
        if k in held:
            actions.append(Discard(k))
        actions.append(Compute(k, with_saves))
        held.add(k)
        if with_saves:
            saved.add(k)
        discard(position)
    actions.append(Reverse(b))
    held.discard(b)
    saved.discard(b)
    needs, own = set(), set()
    last.clear()
    discard(len(runs))


def solve(graph: Graph, budget: int, time_limit: float = 10.0, pinned: int = 0) -> GraphPlan:
    """The cheapest schedule over the graph's fixed order whose peak is within the budget (bytes), by HiGHS.

    Where the time limit (seconds) ends the search, the plan is the best that was found, and its ``optimality`` says by
    how much, at most, it is dearer than the optimum. Values of fewer than ``pinned`` bytes are stored in any case.

    Raises:
        GraphBudgetError: no schedule fits, or none was found in time; it says which peak is possible.
    """
    from memback.plans import milp

    plan = search(graph, budget, time_limit, pinned)
    if plan is None:
        plan = milp.leanest(graph, time_limit / 2, pinned)
    if plan.peak_bytes > budget:
        raise GraphBudgetError(budget, plan)
    return plan


def search(graph: Graph, budget: int, time_limit: float, pinned: int = 0) -> GraphPlan | None:
    """As :func:`solve`, or None where no schedule fits or is found in time."""
    from memback.plans import milp

    full = finish(graph, unfold(graph, everything(graph)), "optimal: nothing is computed twice", 0.0)
    return full if full.peak_bytes <= budget else milp.cheapest(graph, budget, time_limit, pinned)
