"""The judge of every plan for a graph; :mod:`memback.plans.graph` says what is live when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from memback.errors import MembackError
from memback.plans.actions import Compute, Discard, GraphAction, GraphPlan, Reverse, Stored
from memback.plans.graph.nodes import Graph, Running

__all__ = ["IllegalGraphActionError", "finish", "replay", "simulate"]


class IllegalGraphActionError(MembackError):
    """A plan for a graph asks for what can't be done; ``index`` is that of the first such action."""

    def __init__(self, index: int, action: GraphAction | None, reason: str) -> None:
        super().__init__(f"action {index} of the plan ({action or 'its end'}) is not possible: {reason}")
        self.index = index
        self.action = action
        self.reason = reason


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
