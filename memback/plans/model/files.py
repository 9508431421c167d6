"""Plans for models as JSON files, and checks beyond the types of their fields."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from itertools import pairwise
from typing import Any

import msgspec

from memback.errors import UsageError
from memback.plans.actions import Action, GraphAction
from memback.plans.data import Data, read
from memback.plans.graph import memory
from memback.plans.graph.nodes import Graph
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.model_plan import ModelPlan
from memback.plans.model.region import Region, Selection
from memback.plans.model.replay import CallShape
from memback.plans.simulate import IllegalActionError, simulate
from memback.plans.stage import Stage

__all__ = ["SCHEMA", "from_dict", "to_dict"]

SCHEMA = "memback.plan/1"


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
    calls: tuple[CallShape, ...]
    bounds: tuple[int, ...]


class _ChainFile(_File, frozen=True):
    crossing: tuple[frozenset[int], ...]
    lasting: dict[int, int]
    kept: tuple[Selection | None, ...]
    stages: tuple[Stage, ...]
    actions: tuple[Action, ...]


class _PlannedGraph(Graph, frozen=True, kw_only=True):
    views: frozenset[int]
    makers: tuple[int, ...]
    actions: tuple[GraphAction, ...]


class _GraphFile(_File, frozen=True):
    graph: _PlannedGraph


_OF_PLAN = _File.__struct_fields__[1 : _File.__struct_fields__.index("calls")]
"""What a file has of a plan as the plan has it."""
_OF_REGION = tuple(field.name for field in fields(Region))
"""Likewise of a chain's region."""


def to_dict(plan: ModelPlan) -> dict[str, Any]:
    """A plan as plain data."""
    region = plan.region
    common: dict[str, Any] = {name: getattr(plan, name) for name in _OF_PLAN}
    if isinstance(region, GraphRegion):
        parts = {name: getattr(region, name) for name in ("views", "makers", "actions")}
        graph = _PlannedGraph(*msgspec.structs.astuple(region.graph), **parts)
        content: _File = _GraphFile(SCHEMA, **common, calls=region.calls, bounds=region.bounds, graph=graph)
    else:
        content = _ChainFile(
            SCHEMA, **common, **{name: getattr(region, name) for name in _OF_REGION}, stages=plan.stages
        )
    data: dict[str, Any] = msgspec.to_builtins(content, str_keys=True)
    sets = [data["graph"]["views"]] if "graph" in data else [*data["crossing"]]
    sets += [numbers for selection in data.get("kept", ()) if selection for numbers in selection.values()]
    for numbers in sets:
        numbers.sort()
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
    region: Region | GraphRegion
    if isinstance(content, _GraphFile):
        made = content.graph
        graph = Graph(made.nodes, made.running, made.before, made.during)
        region = GraphRegion(content.calls, content.bounds, made.views, made.makers, graph, made.actions)
    else:
        region = Region(**{name: getattr(content, name) for name in _OF_REGION})
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
    if not all(0 <= view < len(content.calls) for view in graph.views) or graph.views & set(graph.makers):
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
