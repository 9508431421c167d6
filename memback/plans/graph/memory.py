"""The judge of every plan for a graph; :mod:`memback.plans.graph.search` says what is live when."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memback.plans.actions import Compute, GraphAction, GraphPlan, Reverse
from memback.plans.graph.nodes import Graph
from memback.plans.simulate import IllegalActionError, Memory, Outcome, State, judge

__all__ = ["IllegalGraphActionError", "finish", "simulate"]

IllegalGraphActionError = IllegalActionError


class _GraphMemory(Memory[GraphAction]):
    """The memory model of a graph."""

    def __init__(self, graph: Graph) -> None:
        nodes = self.nodes = graph.nodes
        self.output_bytes = [node.output_bytes for node in nodes]
        self.saved_bytes = [node.saved_bytes for node in nodes]
        self.costs = [(node.cost, node.backward_cost) for node in nodes]
        self.uses = [_outputs(node.uses) for node in nodes]
        self.needs = [_outputs(node.needs) | (node.saved_bytes > 0) << 2 * i for i, node in enumerate(nodes)]
        self.before, self.during = graph.before, graph.during
        self.moments = {i: [(m.alive, m.besides) for m in moments] for i, moments in graph.moments.items()}

    def do(self, state: State, action: GraphAction) -> Outcome | str:
        i = action.node
        if not 0 <= i < len(self.nodes):
            return f"there is no node {i} in a graph of {len(self)}"
        if isinstance(action, Compute):
            return self._run(state, i, action.saves, self.nodes[i].workspace)
        return self._reverse(state, i) if isinstance(action, Reverse) else self._drop(state, i, action.stored)


def _outputs(nodes: Iterable[int]) -> int:
    """The bits of nodes' outputs."""
    return sum(2 << 2 * v for v in set(nodes))


def simulate(graph: Graph, plan: GraphPlan | Iterable[GraphAction]) -> tuple[float, int]:
    """Cost, in the nodes' unit, and peak, in bytes, of a plan or its actions; the module says what is live when.

    Raises:
        IllegalGraphActionError: an action can't be done, or a node is left to be reversed; it names the first one.
    """
    return judge(_GraphMemory(graph), plan.actions if isinstance(plan, GraphPlan) else plan)[:2]


def finish(graph: Graph, actions: Sequence[GraphAction], optimality: str, gap: float | None = None) -> GraphPlan:
    """A plan of these actions, with the cost and the peak that the judge finds."""
    return GraphPlan(tuple(actions), *simulate(graph, actions), optimality, gap)
