"""Checkpoint policies as plans, so that no policy is ever better than the plans.

The segments of a policy are stages of a chain. Each is run keeping its input alone, or the outputs that the policy
keeps of it, and is made again as a whole before its reversal; what lies between segments is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from memback.errors import UsageError
from memback.nn.policy import applied
from memback.plans.actions import Action, Backward, Forward, Keep
from memback.plans.model.region import Region, Selection
from memback.plans.model.trace import StageLayout, Trace
from memback.plans.stage import Stage

if TYPE_CHECKING:
    from memback.profiling.step import Step

__all__ = ["POLICIES", "PolicyPlan", "policy_plans"]

POLICIES = ("all", "selective", "selective:attention", "sqrt", "every:2")
"""The policies whose plans are candidates."""


class PolicyPlan(NamedTuple):
    """A policy's plan: its region, and the stages as reports show them."""

    policy: str
    region: Region
    stages: tuple[Stage, ...]


def policy_plans(step: Step, trace: Callable[[Step], Trace]) -> Iterator[PolicyPlan]:
    """The distinct plans of all policies that find something in a step's module."""
    assert step.module is not None
    seen: set[tuple[tuple[int, int, frozenset[str]], ...]] = set()
    for policy in POLICIES:
        try:
            with applied(step.module, policy):
                traced = trace(step)
        except UsageError:
            continue
        segments = tuple(traced.segments)
        if segments and segments not in seen:
            seen.add(segments)
            yield _program(policy, traced)


def _program(policy: str, trace: Trace) -> PolicyPlan:
    edges = {edge for start, stop, _ in trace.segments for edge in (start, stop)}
    layout = StageLayout(trace, sorted({0, len(trace.calls)} | edges))
    n = len(layout.bounds) - 1
    # the last stage is kept, because its reversal follows at once
    keep = {layout.bounds.index(start): ops for start, stop, ops in trace.segments if stop < len(trace.calls)}
    used = {(u, i) for i in keep for n in layout.calls_of(i) for u in layout.calls[n].uses}
    read = {u for u, i in used if u < layout.bounds[i]}
    lasting = {n: first for n, first in layout.lasting.items() if n in read}
    kept = tuple(_selection(layout, i, keep[i], lasting) if keep.get(i) else None for i in range(n))
    alone = {i for i, ops in keep.items() if not ops}
    region = Region(
        calls=tuple(call.shape for call in layout.calls),
        bounds=layout.bounds,
        crossing=layout.crossing,
        lasting=lasting,
        kept=kept,
        actions=tuple(_actions(n, alone)),
    )
    return PolicyPlan(policy, region, tuple(_stage(layout, i, kept[i]) for i in range(n)))


def _actions(stages: int, alone: set[int]) -> Iterator[Action]:
    """The schedule that keeps the input of the stages ``alone``, and everything that is to be kept of the others."""
    for i in range(stages):
        yield Forward(i, Keep.INPUT if i in alone else Keep.EVERYTHING)
    for i in reversed(range(stages)):
        if i in alone:
            yield Forward(i, Keep.EVERYTHING)
        yield Backward(i)


def _selection(layout: StageLayout, stage: int, keep: frozenset[str], lasting: Iterable[int]) -> Selection:
    """Of a stage, the outputs of the ops in ``keep``, and what is saved of these and of what the chain stores."""
    numbers = layout.calls_of(stage)
    stored = frozenset(n for n in numbers if layout.calls[n].shape.op in keep)
    there = layout.activations[stage].union(*(layout.calls[n].fresh for n in (*stored, *lasting)))
    return Selection(stored, frozenset(n for n in numbers if layout.calls[n].saved <= there))


def _stage(layout: StageLayout, stage: int, selection: Selection | None) -> Stage:
    flops = sum(layout.calls[n].flops for n in layout.calls_of(stage))
    return Stage(
        forward_cost=flops,
        backward_cost=2 * flops,
        output_bytes=layout.trace.bytes_of(layout.activations[stage + 1]),
        saved_bytes=layout.trace.bytes_of(layout.saved_of(stage, selection)),
    )
