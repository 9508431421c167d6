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
value. :mod:`memback.plans.graph.milp` finds the cheapest.
"""

from __future__ import annotations

from memback.errors import MembackError
from memback.plans.actions import GraphPlan
from memback.plans.graph.memory import IllegalGraphActionError, finish, simulate
from memback.plans.graph.nodes import Graph, Node, Running
from memback.plans.graph.schedule import everything, unfold
from memback.units import format_bytes

__all__ = [
    "Graph",
    "GraphBudgetError",
    "IllegalGraphActionError",
    "Node",
    "Running",
    "search",
    "simulate",
    "solve",
]


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


def solve(graph: Graph, budget: int, time_limit: float = 10.0, pinned: int = 0) -> GraphPlan:
    """The cheapest schedule over the graph's fixed order whose peak is within the budget (bytes), by HiGHS.

    Where the time limit (seconds) ends the search, the plan is the best that was found, and its ``optimality`` says by
    how much, at most, it is dearer than the optimum. Values of fewer than ``pinned`` bytes are stored in any case.

    Raises:
        GraphBudgetError: no schedule fits, or none was found in time; it says which peak is possible.
    """
    from memback.plans.graph import milp

    plan = search(graph, budget, time_limit, pinned)
    if plan is None:
        plan = milp.leanest(graph, time_limit / 2, pinned)
    if plan.peak_bytes > budget:
        raise GraphBudgetError(budget, plan)
    return plan


def search(graph: Graph, budget: int, time_limit: float, pinned: int = 0) -> GraphPlan | None:
    """As :func:`solve`, or None where no schedule fits or is found in time."""
    from memback.plans.graph import milp

    full = finish(graph, unfold(graph, everything(graph)), "optimal: nothing is computed twice", 0.0)
    return full if full.peak_bytes <= budget else milp.cheapest(graph, budget, time_limit, pinned)
