"""Plans as JSON files: plain data, checked in full when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec

from memback.errors import UsageError, shorten
from memback.plans.actions import Backward, Drop, Forward, Keep, Stored
from memback.plans.model import graph_files
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.planning import ModelPlan
from memback.plans.model.region import Region, Selection
from memback.plans.model.replay import CallShape
from memback.plans.simulate import IllegalActionError, simulate
from memback.plans.stage import Stage

__all__ = ["SCHEMA", "from_dict", "to_dict"]

SCHEMA = "memback.plan/1"


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    shape: tuple[int, ...]
    dtype: str


class _Call(msgspec.Struct, forbid_unknown_fields=True):
    op: str
    path: str
    outputs: tuple[_Output, ...]


class _Selection(msgspec.Struct, forbid_unknown_fields=True):
    stored: tuple[int, ...]
    filled: tuple[int, ...]


class _Stage(msgspec.Struct, forbid_unknown_fields=True):
    forward_cost: float
    backward_cost: float
    output_bytes: int
    saved_bytes: int
    forward_workspace: int
    backward_workspace: int
    parameter_gradient_bytes: int


class _Forward(msgspec.Struct, tag="forward", tag_field="do", forbid_unknown_fields=True):
    stage: int
    keep: Keep


class _Backward(msgspec.Struct, tag="backward", tag_field="do", forbid_unknown_fields=True):
    stage: int


class _Drop(msgspec.Struct, tag="drop", tag_field="do", forbid_unknown_fields=True):
    stage: int
    stored: Stored


class _Common(msgspec.Struct, forbid_unknown_fields=True):
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


class _File(_Common, forbid_unknown_fields=True):
    crossing: tuple[tuple[int, ...], ...]
    lasting: dict[int, int]
    kept: tuple[_Selection | None, ...]
    stages: tuple[_Stage, ...]
    actions: tuple[_Forward | _Backward | _Drop, ...]


class _GraphFile(_Common, forbid_unknown_fields=True):
    graph: graph_files.Content


def to_dict(plan: ModelPlan) -> dict[str, Any]:
    """A plan as plain data."""
    region = plan.region
    common: dict[str, Any] = {
        "schema": SCHEMA,
        "budget": plan.budget,
        "peak_bytes": plan.peak_bytes,
        "saved_bytes": plan.saved_bytes,
        "flops": plan.flops,
        "extra_flops": plan.extra_flops,
        "optimality": plan.optimality,
        "peak": dict(plan.peak),
        "parameters": dict(plan.parameters),
        "runs": dict(plan.runs),
        "calls": tuple(_Call(c.op, c.path, tuple(_Output(*output) for output in c.outputs)) for c in region.calls),
        "bounds": region.bounds,
    }
    content: _Common
    if isinstance(region, GraphRegion):
        content = _GraphFile(**common, graph=graph_files.encoded(region))
    else:
        content = _File(**common, **_chain(region, plan.stages))
    data: dict[str, Any] = msgspec.to_builtins(content, str_keys=True)
    return data


def _chain(region: Region, stages: Sequence[Stage]) -> dict[str, Any]:
    """What is particular to a plan for a chain."""
    return {
        "crossing": tuple(tuple(sorted(numbers)) for numbers in region.crossing),
        "lasting": dict(region.lasting),
        "kept": tuple(
            None if s is None else _Selection(tuple(sorted(s.stored)), tuple(sorted(s.filled))) for s in region.kept
        ),
        "stages": tuple(
            _Stage(**{name: getattr(stage, name) for name in _Stage.__struct_fields__}) for stage in stages
        ),
        "actions": tuple(map(_encoded, region.actions)),
    }


def _encoded(action: Forward | Backward | Drop) -> _Forward | _Backward | _Drop:
    match action:
        case Forward(stage, keep):
            return _Forward(stage, keep)
        case Backward(stage):
            return _Backward(stage)
        case Drop(stage, stored):
            return _Drop(stage, stored)


def _decoded(action: _Forward | _Backward | _Drop) -> Forward | Backward | Drop:
    match action:
        case _Forward():
            return Forward(action.stage, action.keep)
        case _Backward():
            return Backward(action.stage)
        case _Drop():
            return Drop(action.stage, action.stored)


def from_dict(data: Any) -> ModelPlan:
    """Read what :func:`to_dict` gave.

    Raises:
        UsageError: it is no plan of this schema, or contradicts itself; the message names what is wrong.
    """
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UsageError(f"this is no plan of memback's: its 'schema' is not {SCHEMA!r}")
    content: _File | _GraphFile
    try:
        if "graph" in data:
            content = msgspec.convert(data, _GraphFile, str_keys=True)
        else:
            content = msgspec.convert(data, _File, str_keys=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"this plan is malformed: {shorten(error)}") from None
    calls = tuple(CallShape(c.op, c.path, tuple((o.shape, o.dtype) for o in c.outputs)) for c in content.calls)
    region: Region | GraphRegion
    stages: tuple[Stage, ...] = ()
    if isinstance(content, _GraphFile):
        region = graph_files.decoded(content.graph, calls, content.bounds)
    else:
        stages = tuple(Stage(**msgspec.structs.asdict(stage)) for stage in content.stages)
        region = _region(content, calls, stages)
    _check_runs(content)
    return ModelPlan(
        region=region,
        stages=stages,
        budget=content.budget,
        peak_bytes=content.peak_bytes,
        saved_bytes=content.saved_bytes,
        flops=content.flops,
        extra_flops=content.extra_flops,
        runs=content.runs,
        optimality=content.optimality,
        peak=content.peak,
        parameters=content.parameters,
    )


def _region(content: _File, calls: tuple[CallShape, ...], stages: Sequence[Stage]) -> Region:
    actions = tuple(map(_decoded, content.actions))
    _check(content, stages, actions)
    return Region(
        calls=calls,
        bounds=content.bounds,
        crossing=tuple(map(frozenset, content.crossing)),
        lasting=content.lasting,
        kept=tuple(None if s is None else Selection(frozenset(s.stored), frozenset(s.filled)) for s in content.kept),
        actions=actions,
    )


def _check_runs(content: _Common) -> None:
    if content.runs and not 0 <= min(content.runs) <= max(content.runs) < len(content.calls):
        raise UsageError(f"this plan is malformed: it names a call beyond the {len(content.calls)} that it has")


def _check(content: _File, stages: Sequence[Stage], actions: Sequence[Forward | Backward | Drop]) -> None:
    n = len(stages)
    bounds = content.bounds
    rising = bounds[:1] == (0,) and all(a < b for a, b in pairwise(bounds))
    if not rising or bounds[-1] != len(content.calls) or len(bounds) != n + 1:
        raise UsageError("this plan is malformed: its 'bounds' do not cut its calls into its stages")
    if len(content.crossing) != n + 1 or len(content.kept) != n:
        raise UsageError(f"this plan is malformed: 'crossing' and 'kept' do not belong to {n} stages")
    numbers = {*content.lasting}.union(*content.crossing, *(s.stored for s in content.kept if s))
    if numbers and not 0 <= min(numbers) <= max(numbers) < len(content.calls):
        raise UsageError(f"this plan is malformed: it names a call beyond the {len(content.calls)} that it has")
    try:
        simulate(stages, actions)
    except IllegalActionError as error:
        raise UsageError(f"this plan can't be run: {error}") from None
