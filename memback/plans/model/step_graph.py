"""Divide a real step into the nodes of a graph, and measure sizes and live bytes around them by dry runs.

A node is a call that makes memory of its own, together with the views of it that follow. A call whose output no call
keeps, and the next node alone uses, becomes a part of that one: storing its output would not pay.

What is live besides values is found by running the step dry in the two extreme ways, with all values stored and with
none: what the peak of each call has beyond the values that are there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

from msgspec import structs

from memback.engine.arrays import root
from memback.engine.node import Edge
from memback.engine.node import Node as TapeNode
from memback.engine.observer import Call
from memback.engine.recipe import RecordedCall
from memback.errors import UsageError
from memback.plans.graph.nodes import Graph, Node, Running
from memback.plans.graph.schedule import Schedule, everything, nothing, unfold
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.measure import predict
from memback.plans.model.trace import Trace
from memback.profiling.ledger import DryLedger
from memback.profiling.step import Step

__all__ = ["LARGEST", "StepGraph", "graph_of"]

LARGEST = 70
"""Nodes of the largest graph that is planned as a whole. Up to here five seconds of two cores are enough for plans that
are cheaper than those for a chain (a GPT of 6 blocks has 69); at 90 they are dearer where there is much room.
"""
_SMALL = 1 / 2000
"""Values that take less than this share of all that can be stored are always stored."""


@dataclass(frozen=True)
class StepGraph:
    """A step as a graph.

    ``skeleton`` is the region without actions; values of fewer than ``pinned`` bytes are always stored.
    """

    skeleton: GraphRegion
    pinned: int

    @property
    def graph(self) -> Graph:
        """The nodes."""
        return self.skeleton.graph

    def region(self, actions: Sequence[Any]) -> GraphRegion:
        """The region under a plan for the graph."""
        return replace(self.skeleton, actions=tuple(actions))


def graph_of(step: Step, trace: Trace) -> StepGraph:
    """Make a graph of a traced step, and measure it by dry runs.

    Raises:
        UsageError: it has more nodes than can be planned as a whole.
    """
    layout = _NodeLayout(trace)
    if len(layout.nodes) > LARGEST:
        raise UsageError(
            f"the graph planner plans the calls of a step all at once, which takes too long for {len(trace.calls)}"
            f" calls that make {len(layout.nodes)} nodes; it takes at most {LARGEST}. Use the planner 'chain'"
        )
    graph = _measured(step, layout)
    total = sum(node.output_bytes + node.saved_bytes for node in graph.nodes)
    return StepGraph(replace(layout.region(graph), actions=()), int(total * _SMALL))


class _Group(NamedTuple):
    """The calls of a node, from ``start`` to ``stop`` (exclusive); ``solid`` are those that are no views."""

    start: int
    stop: int
    solid: tuple[int, ...]

    @property
    def maker(self) -> int:
        """The call whose output is the node's."""
        return self.solid[-1]


class _NodeLayout:
    """A traced region divided into nodes."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.calls = trace, trace.calls
        self.saved_by_any = frozenset().union(*(call.saved for call in self.calls))
        self.views = frozenset(n for n, call in enumerate(self.calls) if not call.fresh and not call.residuals)
        self.groups = self._merged(self._groups())
        self.node_of_call = {n: i for i, group in enumerate(self.groups) for n in range(group.start, group.stop)}
        self.maker = {b: n for n, call in enumerate(self.calls) for b in call.fresh}
        """The call that made each buffer that holds outputs."""
        self.nodes = tuple(self._node(i) for i in range(len(self.groups)))

    def _groups(self) -> list[_Group]:
        solid = [n for n in range(len(self.calls)) if n not in self.views]
        if not solid:
            raise UsageError("the graph planner has nothing to plan: every call of the module gives a view")
        starts = [0, *solid[1:]]
        return [_Group(a, b, (n,)) for (a, b), n in zip(pairwise([*starts, len(self.calls)]), solid, strict=True)]

    def _merged(self, groups: list[_Group]) -> list[_Group]:
        """The groups; one whose output the next alone uses, and no call keeps, is a part of that."""
        users = self._users()
        merged: list[_Group] = []
        for group in groups:
            previous = merged[-1] if merged else None
            if (
                previous is not None
                and users[previous.maker] == {group.maker}
                and not self.calls[previous.maker].fresh & self.saved_by_any
                and self.calls[previous.maker].fresh
            ):
                merged[-1] = _Group(previous.start, group.stop, (*previous.solid, *group.solid))
            else:
                merged.append(group)
        return merged

    def _users(self) -> dict[int, set[int]]:
        """By call that is no view, those that use its output, through views too; what is returned is used by -1."""
        users: dict[int, set[int]] = {n: set() for n in range(len(self.calls)) if n not in self.views}
        for n, call in enumerate(self.calls):
            if n not in self.views:
                for used in self.sources(call.uses):
                    users[used].add(n)
        for used in self.sources(self.trace.outputs):
            users[used].add(-1)
        return users

    def sources(self, numbers: Iterable[int]) -> set[int]:
        """The calls that made what these calls give: themselves, or what they are views of."""
        found: set[int] = set()
        for n in numbers:
            found |= self.sources(self.calls[n].uses) if n in self.views else {n}
        return found

    def _node(self, i: int) -> Node:
        group, trace = self.groups[i], self.trace
        inside = [self.calls[n] for n in range(group.start, group.stop)]
        uses = {self.node_of_call[n] for m in group.solid for n in self.sources(self.calls[m].uses)} - {i}
        needs = {self.node_of_call[self.maker[b]] for call in inside for b in call.saved if b in self.maker}
        return Node(
            cost=sum(call.flops for call in inside),
            output_bytes=trace.bytes_of(self.calls[group.maker].fresh),
            uses=tuple(sorted(uses)),
            needs=tuple(sorted(needs)),
            saved_bytes=trace.bytes_of(b for call in inside for b in call.residuals),
            backward_cost=2 * sum(call.flops for call in inside),
        )

    def region(self, graph: Graph) -> GraphRegion:
        """The region, storing everything."""
        return GraphRegion(
            calls=tuple(call.shape for call in self.calls),
            bounds=(*(group.start for group in self.groups), len(self.calls)),
            views=self.views,
            makers=tuple(group.maker for group in self.groups),
            graph=graph,
            actions=tuple(unfold(graph, everything(graph))),
        )

    @cached_property
    def saved_up_to(self) -> list[int]:
        """By call, the bytes that it and those before it keep."""
        seen: set[int] = set()
        total, sizes = 0, []
        for call in self.calls:
            new = call.saved - seen
            seen |= new
            total += self.trace.bytes_of(new)
            sizes.append(total)
        return sizes

    def released(self, call: int) -> int:
        """Bytes of its node's own values that a call, and those before it, don't keep any more when it is reversed."""
        group = self.groups[self.node_of_call[call]]
        own = self.calls[group.maker].fresh.union(*(self.calls[n].residuals for n in group.solid))
        inside = [self.calls[n].saved & own for n in range(group.start, group.stop)]
        still = frozenset().union(*inside[: call - group.start + 1])
        return self.trace.bytes_of(frozenset().union(*inside) - still)


class _Interval(NamedTuple):
    """A stretch of a dry run: what it belongs to, its peak, live bytes at its end, and which outputs are alive then.

    ``kind`` is "call" (one of the region has run in it), "other" (some other op has) or "gap"; ``call`` is the last of
    the region's calls that has begun, -1 before the first and their number once something has run after the last.
    """

    kind: str
    call: int
    peak: int
    level: int
    alive: frozenset[int]


class _GraphLedger(DryLedger):
    """A dry ledger that notes, interval by interval, what a graph's model of memory has to account for."""

    def __init__(self, layout: _NodeLayout, names: Mapping[int, str]) -> None:
        self.layout = layout
        self.forward: list[_Interval] = []
        """Up to the first backward of a call of the region."""
        self.backward: list[tuple[int, int, int]] = []
        """(call, peak, live bytes at the end) for the calls of the region, in order."""
        self.later = 0
        """The highest peak after all of these."""
        self._kind, self._call, self._reversing = "gap", -1, False
        self._outputs: dict[int, list[weakref.ref[Any]]] = {}
        super().__init__(names)

    def _close(self) -> None:
        super()._close()
        self.later = max(self.later, self.peaks[-1])
        if not self._reversing:
            alive = frozenset(v for v, refs in self._outputs.items() if any(ref() is not None for ref in refs))
            level = self._memory.live
            self.forward.append(_Interval(self._kind, self._call, self.peaks[-1], level, alive))
        self._kind = "gap"

    def forward_ended(self, call: Call) -> None:
        if not self._reversing:
            self._kind = "call" if isinstance(call.node, RecordedCall) else "other"
            if isinstance(call.node, RecordedCall):
                self._meet_output(call, call.node.index)
            elif self._call + 1 == len(self.layout.calls):
                self._call += 1
        super().forward_ended(call)

    def _meet_output(self, call: Call, number: int) -> None:
        self._call = number
        node = self.layout.node_of_call[number]
        if self.layout.groups[node].maker == number:
            outs = call.out if call.op.multiple else (call.out,)
            self._outputs[node] = [weakref.ref(root(out)) for out in outs]

    def backward_pass_begins(self) -> None:
        super().backward_pass_begins()
        self._call = len(self.layout.calls)

    def backward_begins(self, node: TapeNode) -> None:
        super().backward_begins(node)
        self._reversing = self._reversing or isinstance(node, RecordedCall)

    def backward_ended(self, node: TapeNode, edges: Sequence[Edge | None]) -> None:
        super().backward_ended(node, edges)
        if isinstance(node, RecordedCall):
            self.backward.append((node.index, self.peaks[-1], self._memory.live))
            self.later = 0


def _measured(step: Step, layout: _NodeLayout) -> Graph:
    """The graph of a step, with the bytes besides its values that dry runs find."""
    bare = Graph(layout.nodes)
    full = _run(step, layout, bare, everything(bare))
    lean = _run(step, layout, bare, nothing(bare))
    workspace = _workspace(layout, full.forward, lean.forward)
    nodes = tuple(structs.replace(node, workspace=workspace[i]) for i, node in enumerate(layout.nodes))
    before, during = _around_backward(layout, full)
    return Graph(nodes, tuple(_moments(layout, full.forward, lean.forward)), tuple(before), tuple(during))


def _run(step: Step, layout: _NodeLayout, graph: Graph, schedule: Schedule) -> _GraphLedger:
    region = replace(layout.region(graph), actions=tuple(unfold(graph, schedule)))
    ledger = predict(step, region.begin, partial(_GraphLedger, layout)).ledger
    assert isinstance(ledger, _GraphLedger)
    return ledger


def _moments(layout: _NodeLayout, full: Sequence[_Interval], lean: Sequence[_Interval]) -> Iterable[Running]:
    """The moments of the forward pass. ``lean`` tells what is alive by itself, ``full`` what storing takes besides."""
    first = everything(Graph(layout.nodes))
    n = len(layout.nodes)
    stored, saves = first.outputs[n - 1], first.saves[n - 1]
    size = [node.output_bytes for node in layout.nodes]
    level: _Interval | None = None
    for here, there in zip(lean, full, strict=True):
        node = 0 if here.call < 0 else layout.node_of_call.get(here.call, n)
        alive = here.alive
        if here.kind == "gap" and level is not None:
            alive |= level.alive
            if here.peak <= level.level and there.peak <= there.level:
                continue
        values = sum(size[v] for v in alive)
        kept = sum(size[v] for v in stored if v < node and v not in alive)
        kept += sum(layout.nodes[v].saved_bytes for v in saves if v <= node)
        level = here
        yield Running(node, tuple(sorted(alive)), max(here.peak - values, there.peak - values - kept))


def _workspace(layout: _NodeLayout, *runs: Sequence[_Interval]) -> list[int]:
    """By node, what running it again holds at most besides its output and saves."""
    most = [0] * len(layout.groups)
    trace = layout.trace
    own: dict[int, int] = {}
    for run in runs:
        for before, here in pairwise(run):
            if here.kind == "call":
                made = trace.bytes_of(layout.calls[here.call].fresh)
                own[here.call] = max(own.get(here.call, 0), here.peak - before.level - made)
    for i, group in enumerate(layout.groups):
        inputs = 0
        for n in group.solid:
            made = trace.bytes_of(layout.calls[n].fresh)
            last = n == group.maker
            most[i] = max(most[i], own.get(n, 0) + inputs + (0 if last else made - layout.nodes[i].output_bytes))
            inputs = made
    return most


def _around_backward(layout: _NodeLayout, full: _GraphLedger) -> tuple[list[int], list[int]]:
    """By node, the bytes besides values that are live before its backward, and during it."""
    n = len(layout.groups)
    before, during = [0] * n, [0] * n
    level = full.forward[-1].level
    reached = len(layout.calls)
    for call, peak, after in full.backward:
        i = layout.node_of_call[call]
        if call < reached and (reached == len(layout.calls) or layout.node_of_call[reached] != i):
            before[i] = max(level - layout.saved_up_to[layout.groups[i].stop - 1], 0)
        during[i] = max(during[i], peak - layout.saved_up_to[call] - layout.released(call))
        level, reached = after, call
    for i in reversed(range(n)):  # a node without a backward of its own is passed by
        if not during[i] and i + 1 < n:
            before[i] = during[i] = before[i + 1]
    first = layout.nodes[0]
    needed = sum(layout.nodes[v].output_bytes for v in first.needs) + first.saved_bytes
    during[0] = max(during[0], full.later - needed)
    return before, during
