"""Plans for models as JSON files, and the checks of what the types of their fields do not say."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any

import msgspec

from memback.errors import UsageError
from memback.plans.actions import Action, GraphAction
from memback.plans.data import Data, read
from memback.plans.graph import memory
from memback.plans.graph.nodes import Graph
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.planning import ModelPlan
from memback.plans.model.region import Region, Selection
from memback.plans.model.replay import CallShape
from memback.plans.simulate import IllegalActionError, simulate
from memback.plans.stage import Stage

__all__ = ["SCHEMA", "from_dict", "to_dict"]

SCHEMA = "memback.plan/1"


class _Output(Data, frozen=True):
    shape: tuple[int, ...]
    dtype: str


class _Call(Data, frozen=True):
    op: str
    path: str
    outputs: tuple[_Output, ...]


class _Selection(Data, frozen=True):
    stored: tuple[int, ...]
    filled: tuple[int, ...]


class _File(Data, frozen=True):
    schema: str
    budget: int
    peak_bytes: int
    saved_bytes: int
    flops: int
    extra_flops: int
    optimality: str
    peak: dict[str, int | str]
    parameters: dict[str, tuple[int, ...]]
    runs: dict[int, int]
    calls: tuple[_Call, ...]
    bounds: tuple[int, ...]


class _ChainFile(_File, frozen=True):
    crossing: tuple[tuple[int, ...], ...]
    lasting: dict[int, int]
    kept: tuple[_Selection | None, ...]
    stages: tuple[Stage, ...]
    actions: tuple[Action, ...]


class _PlannedGraph(Graph, frozen=True, kw_only=True):
    views: tuple[int, ...]
    makers: tuple[int, ...]
    actions: tuple[GraphAction, ...]


class _GraphFile(_File, frozen=True):
    graph: _PlannedGraph


_OF_PLAN = _File.__struct_fields__[1 : _File.__struct_fields__.index("calls")]
"""What a file has of a plan as the plan has it."""


def to_dict(plan: ModelPlan) -> dict[str, Any]:
    """A plan as plain data."""
    region = plan.region
    common: dict[str, Any] = {name: getattr(plan, name) for name in _OF_PLAN}
    common["calls"] = tuple(_Call(c.op, c.path, tuple(_Output(*output) for output in c.outputs)) for c in region.calls)
    common["bounds"] = region.bounds
    if isinstance(region, GraphRegion):
        graph = _PlannedGraph(
            *msgspec.structs.astuple(region.graph),
            views=tuple(sorted(region.views)),
            makers=region.makers,
            actions=region.actions,
        )
        content: _File = _GraphFile(SCHEMA, **common, graph=graph)
    else:
        content = _ChainFile(
            SCHEMA,
            **common,
            crossing=tuple(tuple(sorted(numbers)) for numbers in region.crossing),
            lasting=dict(region.lasting),
            kept=tuple(s and _Selection(tuple(sorted(s.stored)), tuple(sorted(s.filled))) for s in region.kept),
            stages=plan.stages,
            actions=region.actions,
        )
    data: dict[str, Any] = msgspec.to_builtins(content, str_keys=True)
    return data


def from_dict(data: Any) -> ModelPlan:
    """Read what :func:`to_dict` gave.

    Raises:
        UsageError: it is no plan of this schema, or contradicts itself; the message names what is wrong.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UsageError(f"this is no plan of memback's: its 'schema' is not {SCHEMA!r}")
    content = read(data, _GraphFile) if "graph" in data else read(data, _ChainFile)
    _check(content)
    calls = tuple(CallShape(c.op, c.path, tuple((o.shape, o.dtype) for o in c.outputs)) for c in content.calls)
    region: Region | GraphRegion
    if isinstance(content, _GraphFile):
        made = content.graph
        graph = Graph(made.nodes, made.running, made.before, made.during)
        region = GraphRegion(calls, content.bounds, frozenset(made.views), made.makers, graph, made.actions)
    else:
        region = Region(
            calls=calls,
            bounds=content.bounds,
            crossing=tuple(map(frozenset, content.crossing)),
            lasting=content.lasting,
            kept=tuple(Selection(frozenset(s.stored), frozenset(s.filled)) if s else None for s in content.kept),
            actions=content.actions,
        )
    return ModelPlan(
        region=region,
        stages=content.stages if isinstance(content, _ChainFile) else (),
        **{name: getattr(content, name) for name in _OF_PLAN},
    )


# -- what types do not say


def _check(content: _ChainFile | _GraphFile) -> None:
    try:
        if isinstance(content, _GraphFile):
            _check_graph(content, content.graph)
            memory.simulate(content.graph, content.graph.actions)
        else:
            _check_chain(content)
            simulate(content.stages, content.actions)
    except IllegalActionError as error:
        raise UsageError(f"this plan can't be run: {error}") from None
    _check_calls(content, content.runs)


def _check_chain(content: _ChainFile) -> None:
    n = len(content.stages)
    _check_bounds(content, n, "stages")
    if len(content.crossing) != n + 1 or len(content.kept) != n:
        raise UsageError(f"this plan is malformed: 'crossing' and 'kept' do not belong to {n} stages")
    _check_calls(content, {*content.lasting}.union(*content.crossing, *(s.stored for s in content.kept if s)))


def _check_graph(content: _GraphFile, graph: _PlannedGraph) -> None:
    n, bounds = len(graph), content.bounds
    _check_bounds(content, n, "nodes")
    if len(graph.makers) != n or not all(bounds[i] <= m < bounds[i + 1] for i, m in enumerate(graph.makers)):
        raise UsageError("this plan is malformed: its 'makers' are not one call of each node")
    if not all(0 <= view < len(content.calls) for view in graph.views) or set(graph.views) & set(graph.makers):
        raise UsageError("this plan is malformed: its 'views' are no calls that are views of others")
    if not all(0 <= v < n for m in graph.running for v in m.alive):
        raise UsageError(f"this plan is malformed: 'running' names a node beyond the {n} that it has")


def _check_bounds(content: _File, parts: int, what: str) -> None:
    bounds = content.bounds
    rising = bounds[:1] == (0,) and all(a < b for a, b in pairwise(bounds))
    if not rising or bounds[-1] != len(content.calls) or len(bounds) != parts + 1:
        raise UsageError(f"this plan is malformed: its 'bounds' do not cut its calls into its {what}")


def _check_calls(content: _File, numbers: Collection[int]) -> None:
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(content.calls):
        raise UsageError(f"this plan is malformed: it names a call beyond the {len(content.calls)} that it has")
