"""The part of a plan's file that is particular to plans for graphs: plain data, checked in full when it is read."""

from __future__ import annotations

from itertools import pairwise

import msgspec

from memback.errors import UsageError
from memback.plans.actions import Compute, Discard, GraphAction, Reverse, Stored
from memback.plans.graph.memory import IllegalGraphActionError, simulate
from memback.plans.graph.nodes import Graph, Node, Running
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.replay import CallShape

__all__ = ["Content", "decoded", "encoded"]


class _Node(msgspec.Struct, forbid_unknown_fields=True):
    cost: float
    output_bytes: int
    uses: tuple[int, ...]
    needs: tuple[int, ...]
    saved_bytes: int
    workspace: int
    backward_cost: float


class _Running(msgspec.Struct, forbid_unknown_fields=True):
    node: int
    alive: tuple[int, ...]
    besides: int


class _Compute(msgspec.Struct, tag="compute", tag_field="do", forbid_unknown_fields=True):
    node: int
    saves: bool


class _Reverse(msgspec.Struct, tag="reverse", tag_field="do", forbid_unknown_fields=True):
    node: int


class _Discard(msgspec.Struct, tag="discard", tag_field="do", forbid_unknown_fields=True):
    node: int
    stored: Stored


class Content(msgspec.Struct, forbid_unknown_fields=True):
    """A graph region without its calls."""

    nodes: tuple[_Node, ...]
    running: tuple[_Running, ...]
    before: tuple[int, ...]
    during: tuple[int, ...]
    views: tuple[int, ...]
    makers: tuple[int, ...]
    actions: tuple[_Compute | _Reverse | _Discard, ...]


def encoded(region: GraphRegion) -> Content:
    """A region as plain data."""
    graph = region.graph
    return Content(
        nodes=tuple(_Node(**{name: getattr(node, name) for name in _Node.__struct_fields__}) for node in graph.nodes),
        running=tuple(_Running(m.node, tuple(sorted(m.alive)), m.besides) for m in graph.running),
        before=graph.before,
        during=graph.during,
        views=tuple(sorted(region.views)),
        makers=region.makers,
        actions=tuple(map(_encoded, region.actions)),
    )


def _encoded(action: GraphAction) -> _Compute | _Reverse | _Discard:
    match action:
        case Compute(node, saves):
            return _Compute(node, saves)
        case Reverse(node):
            return _Reverse(node)
        case Discard(node, stored):
            return _Discard(node, stored)


def _decoded(action: _Compute | _Reverse | _Discard) -> GraphAction:
    match action:
        case _Compute():
            return Compute(action.node, action.saves)
        case _Reverse():
            return Reverse(action.node)
        case _Discard():
            return Discard(action.node, action.stored)


def decoded(content: Content, calls: tuple[CallShape, ...], bounds: tuple[int, ...]) -> GraphRegion:
    """The region that :func:`encoded` was given.

    Raises:
        UsageError: it contradicts itself; the message names what is wrong.
    """
    graph = Graph(
        tuple(Node(**msgspec.structs.asdict(node)) for node in content.nodes),
        tuple(Running(m.node, frozenset(m.alive), m.besides) for m in content.running),
        content.before,
        content.during,
    )
    n = len(graph)
    rising = bounds[:1] == (0,) and all(a < b for a, b in pairwise(bounds))
    if not rising or bounds[-1] != len(calls) or len(bounds) != n + 1:
        raise UsageError("this plan is malformed: its 'bounds' do not cut its calls into its nodes")
    inside = len(content.makers) == n and all(bounds[i] <= m < bounds[i + 1] for i, m in enumerate(content.makers))
    if not inside:
        raise UsageError("this plan is malformed: its 'makers' are not one call of each node")
    if not all(0 <= view < len(calls) for view in content.views) or set(content.views) & set(content.makers):
        raise UsageError("this plan is malformed: its 'views' are no calls that are views of others")
    if not all(0 <= v < n for m in graph.running for v in m.alive):
        raise UsageError(f"this plan is malformed: 'running' names a node beyond the {n} that it has")
    actions = tuple(map(_decoded, content.actions))
    try:
        simulate(graph, actions)
    except IllegalGraphActionError as error:
        raise UsageError(f"this plan can't be run: {error}") from None
    return GraphRegion(calls, bounds, frozenset(content.views), content.makers, graph, actions)
