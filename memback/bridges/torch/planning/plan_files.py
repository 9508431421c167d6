"""Plans for PyTorch modules as JSON files: plain data, checked in full when it is read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec

from memback.bridges.torch.planning import call_plan
from memback.bridges.torch.planning.base import TorchPlan
from memback.bridges.torch.planning.block_plan import BlockPlan
from memback.bridges.torch.recording.body import Body, actions_of, blocks_in
from memback.bridges.torch.recording.calls import Call
from memback.bridges.torch.recording.flow import checked
from memback.errors import UsageError, shorten
from memback.plans.data import Data, read
from memback.plans.simulate import IllegalActionError, simulate
from memback.plans.stage import Stage

__all__ = ["SCHEMA", "from_dict", "to_dict"]

SCHEMA = "memback.torch-plan/1"


class _Stage(Data, frozen=True):
    unit: int | None
    forward_cost: int | float
    backward_cost: int | float
    output_bytes: int
    saved_bytes: int
    gradient_bytes: int
    forward_workspace: int
    sweep_workspace: int
    backward_workspace: int
    parameter_gradient_bytes: int
    sweeps: bool


class _File(Data, frozen=True):
    schema: str
    name: str
    budget: int
    peak_bytes: int
    reserve_bytes: int
    full_peak_bytes: int
    saved_bytes: int
    unit_saved_bytes: tuple[int, ...]
    flops: int
    extra_flops: int
    extra_seconds: float | None
    optimality: str
    peak: dict[str, int | str]
    parameters: dict[str, tuple[int, ...]]
    calls: tuple[Call, ...]
    body: tuple[Any, ...]
    bounds: tuple[int, ...]
    stages: tuple[_Stage, ...]


_SAME = [name for name in _File.__struct_fields__ if name not in ("schema", "calls", "body", "stages")]
_SIZES = [name for name in _Stage.__struct_fields__ if name != "unit"]


def to_dict(plan: BlockPlan) -> dict[str, Any]:
    """A plan as plain data."""
    stages = tuple(
        _Stage(unit=unit, **{name: getattr(stage, name) for name in _SIZES})
        for unit, stage in zip(plan.units, plan.stages, strict=True)
    )
    same = {name: getattr(plan, name) for name in _SAME}
    content = _File(schema=SCHEMA, calls=plan.calls, body=plan.body, stages=stages, **same)
    data: dict[str, Any] = msgspec.to_builtins(content, str_keys=True)
    return data


def from_dict(data: Any) -> TorchPlan:
    """Read what :func:`to_dict` gave.

    Raises:
        UsageError: it is no plan of this schema, or contradicts itself; the message names what is wrong.
    """
    if isinstance(data, dict) and data.get("schema") == call_plan.SCHEMA:
        return call_plan.CallPlan.read(data)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        other = data.get("schema") if isinstance(data, dict) else None
        raise UsageError(
            f"this is no plan for a PyTorch module: its 'schema' is {shorten(repr(other))}, not {SCHEMA!r}"
            + ("; it is one for a profile of memback's" if other == "memback.plan/1" else "")
        )
    content = read(data, _File)
    plan = BlockPlan(
        calls=tuple(map(_call, content.calls)),
        body=_body(content.body),
        stages=tuple(Stage(**{name: getattr(stage, name) for name in _SIZES}) for stage in content.stages),
        units=tuple(stage.unit for stage in content.stages),
        **{name: getattr(content, name) for name in _SAME},
    )
    _check(plan)
    return plan


def _call(call: Call) -> Call:
    if call.flow is None:
        return msgspec.structs.replace(call, linked=False)
    return msgspec.structs.replace(call, flow=checked(call.flow, f"{call.path} in this plan"))


def _body(items: Any) -> Body:
    if not isinstance(items, (list, tuple)) or not items:
        raise UsageError(f"this plan is malformed: {items!r:.60} in its 'body' is neither a block nor a list of some")
    return tuple(item if type(item) is int else _body(item) for item in items)


def _check(plan: BlockPlan) -> None:
    if list(blocks_in(plan.body)) != list(range(len(plan.calls))):
        raise UsageError(f"this plan is malformed: its 'body' does not name its {len(plan.calls)} blocks in order")
    rising = plan.bounds[:1] == (0,) and all(a < b for a, b in pairwise((*plan.bounds, len(plan.calls))))
    if not rising or [unit for unit in plan.units if unit is not None] != list(range(len(plan.bounds))):
        raise UsageError("this plan is malformed: its 'bounds' and 'stages' do not make units of its blocks")
    if len(plan.unit_saved_bytes) != len(plan.bounds):
        raise UsageError("this plan is malformed: its 'unit_saved_bytes' are not one a unit")
    _check_segments(plan, plan.body, top=True)
    try:
        simulate(plan.stages, list(actions_of(plan.staged)))
    except IllegalActionError as error:
        raise UsageError(f"this plan can't be run: {error}") from None


def _check_segments(plan: BlockPlan, body: Body, top: bool) -> None:
    """Within a segment neighbours are linked, and units whole."""
    before: int | None = None
    for item in body:
        first = next(blocks_in((item,)))
        if not isinstance(item, int):
            if first not in plan.bounds:
                raise UsageError(f"this plan can't be run: a segment begins amid what {plan.calls[first].path} is in")
            _check_segments(plan, item, top=False)
        if not top and before is not None and not plan.calls[first].linked:
            raise UsageError(
                f"this plan can't be run: {plan.calls[first].path} is in a segment with {plan.calls[before].path}, of"
                " which it is not known what flows between them"
            )
        before = list(blocks_in((item,)))[-1]
