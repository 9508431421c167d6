"""A graph as plain data: its nodes in a fixed order, and what is live around them (:mod:`memback.plans.graph`)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from numbers import Real

from msgspec.structs import force_setattr

from memback.errors import UsageError
from memback.plans.data import Data, always

__all__ = ["Graph", "Node", "Running"]


class Node(Data, frozen=True):
    """One node of a graph.

    Attributes:
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

    cost: int | float
    output_bytes: int
    uses: tuple[int, ...] = always(())
    needs: tuple[int, ...] = always(())
    saved_bytes: int = always(0)
    workspace: int = always(0)
    backward_cost: int | float = always(0)
    gradient_bytes: int | None = None
    backward_workspace: int = 0
    parameter_gradient_bytes: int = 0

    @property
    def output_gradient_bytes(self) -> int:
        """Bytes of dL/d(output)."""
        return self.output_bytes if self.gradient_bytes is None else self.gradient_bytes


class Running(Data, frozen=True):
    """A moment of the forward pass.

    ``node`` is running then; the number of nodes stands for what comes after all of them, up to backward. ``alive`` are
    the outputs that are there whether they are stored or not, its own among them once it is being made; ``besides`` are
    the bytes that no value accounts for.
    """

    node: int
    alive: tuple[int, ...]
    besides: int


class Graph(Data, frozen=True, dict=True):
    """Nodes in a fixed order, with what is live around them.

    Attributes:
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
        force_setattr(self, "nodes", nodes)
        force_setattr(self, "running", tuple(self.running or _running(self)))
        before, during = _gradients(self)
        force_setattr(self, "before", tuple(self.before or before))
        force_setattr(self, "during", tuple(self.during or during))
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
        yield Running(number, tuple(v for v in range(number + 1) if last[v] >= number), node.workspace)


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
