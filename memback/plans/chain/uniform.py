"""Baselines: keep everything, or cut the chain into segments of equal length and keep only what each begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from memback.errors import UsageError
from memback.plans.actions import Action, Plan
from memback.plans.segments import recorded, swept
from memback.plans.simulate import BudgetError, Chain, replay, within
from memback.plans.stage import Stage

__all__ = ["everything", "solve", "sqrt"]


def solve(stages: Sequence[Stage], budget: int, input_bytes: int = 0, length: int | None = None) -> Plan:
    """Segments of k stages, all but the last recomputed from their input. Written uniform:k, or uniform for the best k.

    Raises:
        BudgetError: the segments, of any length where none is given, do not fit the budget (bytes).
        UsageError: there is no stage, ``length`` is below 1, or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    if length is not None:
        what = f"a plan of segments of {length} stages"
        return within(chain, _cut(len(chain), length), budget, what, f"baseline: segments of {length} stages")
    options = []
    for k in sorted({-(-len(chain) // segments) for segments in range(1, len(chain) + 1)}):
        cost, peak = replay(chain, _cut(len(chain), k))
        options.append((peak.live.total > budget, cost, k, peak))
    exceeds, _, k, _ = min(options, key=lambda option: option[:3])
    if exceeds:
        raise BudgetError(
            "every plan of equal segments", budget, min((o[3] for o in options), key=lambda p: p.live.total)
        )
    return within(
        chain, _cut(len(chain), k), budget, "", f"baseline: segments of {k} stages, the cheapest of their kind"
    )


def sqrt(stages: Sequence[Stage], budget: int, input_bytes: int = 0) -> Plan:
    """As many segments as a segment has stages, about; the last is kept (Chen et al. 2016, arXiv 1604.06174).

    Raises:
        BudgetError: they do not fit the budget (bytes).
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    length = math.isqrt(len(chain) - 1) + 1
    optimality = f"baseline: segments of {length} stages"
    return within(chain, _cut(len(chain), length), budget, "a plan of about sqrt(n) segments", optimality)


def everything(stages: Sequence[Stage], budget: int, input_bytes: int = 0) -> Plan:
    """Keep everything: nothing is run twice, so no plan is cheaper.

    Raises:
        BudgetError: it does not fit the budget (bytes).
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    return within(chain, _cut(len(chain), len(chain)), budget, "keeping everything", "optimal: nothing is run twice")


def _cut(n: int, length: int) -> list[Action]:
    """Segments of ``length`` stages; the last one is kept, the others are recomputed from their input."""
    if length < 1:
        raise UsageError(f"a segment must have at least one stage, not {length}")
    starts = range(0, n, length)
    actions = [action for start in starts[:-1] for action in swept(start, start + length)]
    for start in reversed(starts):
        actions += recorded(start, min(start + length, n))
    return actions
