"""A region whose calls are the nodes of a graph, and what a plan does with these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from memback.engine.program import Instruction, Program, Recompute, Release
from memback.engine.program import Reverse as ReverseCalls
from memback.plans.actions import Compute, Discard, GraphAction, Reverse, Stored
from memback.plans.graph.nodes import Graph
from memback.plans.graph.schedule import everything, unfold
from memback.plans.model.replay import CallShape, PlanReplay

__all__ = ["GraphRegion"]


@dataclass(frozen=True)
class GraphRegion:
    """How the calls of a region make up a graph's nodes, and what is done with these.

    Attributes:
        calls: what each call must be, in order.
        bounds: node i is the calls from ``bounds[i]`` to ``bounds[i + 1]`` (exclusive).
        views: the calls whose outputs live in memory that another call has made. They belong to no node's computation:
            they are made again wherever they are needed, from what they are views of.
        makers: by node, the call whose output is the node's.
        graph: what the planner knew of the nodes.
        actions: of the plan.
    """

    calls: tuple[CallShape, ...]
    bounds: tuple[int, ...]
    views: frozenset[int]
    makers: tuple[int, ...]
    graph: Graph
    actions: tuple[GraphAction, ...]

    def keeping_everything(self) -> GraphRegion:
        """The same region, with all kept that backward needs."""
        return replace(self, actions=tuple(unfold(self.graph, everything(self.graph))))

    @cached_property
    def after_forward(self) -> int:
        """The index of the first action that is no part of the forward pass."""
        computed = 0
        for index, action in enumerate(self.actions):
            if computed == len(self.graph) and not isinstance(action, Discard):
                return index
            computed += isinstance(action, Compute)
        return len(self.actions)

    @cached_property
    def stored_in_forward(self) -> tuple[frozenset[int], frozenset[int]]:
        """The nodes whose outputs, and whose saves, are stored at the end of the forward pass."""
        outputs: set[int] = set()
        saves: set[int] = set()
        for action in self.actions[: self.after_forward]:
            if isinstance(action, Compute):
                outputs.add(action.node)
                if action.saves:
                    saves.add(action.node)
            elif isinstance(action, Discard):
                (outputs if action.stored is Stored.OUTPUT else saves).discard(action.node)
        return frozenset(outputs), frozenset(saves)

    @cached_property
    def whole(self) -> frozenset[int]:
        """The nodes whose backward needs nothing that is not stored from forward until then: they are not lean."""
        outputs, saves = (set(stored) for stored in self.stored_in_forward)
        whole: set[int] = set()
        for action in self.actions[self.after_forward :]:
            if isinstance(action, Reverse):
                node = self.graph.nodes[action.node]
                if outputs >= set(node.needs) and (not node.saved_bytes or action.node in saves):
                    whole.add(action.node)
            elif isinstance(action, Discard):
                (outputs if action.stored is Stored.OUTPUT else saves).discard(action.node)
        return frozenset(whole)

    @cached_property
    def computed_again(self) -> frozenset[int]:
        """The nodes that are computed again."""
        return frozenset(action.node for action in self.actions[self.after_forward :] if isinstance(action, Compute))

    @cached_property
    def held_in_forward(self) -> frozenset[int]:
        """The nodes whose outputs are held from forward on for others than the calls that keep them."""
        lean = set(range(len(self.graph))) - self.whole
        wanted = {v for i in lean for v in self.graph.nodes[i].needs}
        wanted.update(v for i in self.computed_again for v in self.graph.nodes[i].uses)
        return self.stored_in_forward[0] & wanted

    def begin(self) -> PlanReplay:
        """One run of the region."""
        return PlanReplay(self.calls, self.program)

    @cached_property
    def program(self) -> Program:
        """What is kept of each call, and what is run again before which reversal."""
        lean = [i for i in range(len(self.graph)) if i not in self.whole]
        saving = self.stored_in_forward[1].intersection(lean)
        again = (n for i in self.computed_again for n in self._calls_of(i) if n not in self.views)
        return Program(
            whole=frozenset(n for i in self.whole for n in self._calls_of(i)),
            outputs=frozenset(self.makers[i] for i in self.held_in_forward),
            saves=frozenset(n for i in saving for n in self._calls_of(i)),
            recipes=range(len(self.calls)) if lean or self.computed_again else (),
            again=frozenset(again),
            steps=tuple(self._steps()),
        )

    def _calls_of(self, node: int) -> range:
        return range(self.bounds[node], self.bounds[node + 1])

    def _steps(self) -> Iterator[Instruction]:
        for action in self.actions[self.after_forward :]:
            calls, maker = self._calls_of(action.node), self.makers[action.node]
            if isinstance(action, Reverse):
                yield ReverseCalls(calls.start, calls.stop)
                yield Release((maker,), calls)
            elif isinstance(action, Compute):
                saves = (n for n in calls if action.saves and n not in self.views and n <= maker)
                yield Recompute(calls.start, calls.stop, frozenset((maker,)), saves=frozenset(saves))
            elif action.stored is Stored.OUTPUT:
                yield Release((maker,))
            else:
                yield Release((), calls)
