"""Revolve: the fewest forwards for a uniform chain whose checkpoints are counted in slots.

(Griewank & Walther, "Algorithm 799: revolve", ACM Transactions on Mathematical Software 26, 2000.) A slot holds the
input of one stage, and the chain's own input takes one. With s slots and at most r runs of each stage besides the one
that its reversal begins with, C(s + r, s) stages can be reversed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from memback.errors import UsageError
from memback.plans.actions import Action, Plan
from memback.plans.segments import recorded, swept
from memback.plans.simulate import BudgetError, Chain, finish, replay
from memback.plans.stage import Stage

__all__ = ["UNIT", "extra_forwards", "first_checkpoint", "schedule", "solve"]

UNIT = Stage(forward_cost=1, backward_cost=1, output_bytes=1)
"""The stage of a chain that is counted in runs and slots."""


def extra_forwards(n: int, slots: int) -> int:
    """t(n, s) = r n - C(s + r, r - 1), with r the least integer such that C(s + r, s) >= n.

    The runs of a stage's forward that the cheapest schedule for n stages and s slots needs, besides the one that each
    reversal begins with. The chain's input takes one of the slots.

    Raises:
        UsageError: n or slots is below 1.
    """
    repetitions = _repetitions(n, slots)
    return repetitions * n - (math.comb(slots + repetitions, repetitions - 1) if repetitions else 0)


def schedule(n: int, slots: int, stage: Stage = UNIT, input_bytes: int = 0) -> Plan:
    """The schedule with the fewest forwards for n stages alike, of which ``slots`` inputs are held at once at most.

    Cost and peak are those of a chain of n times ``stage``.

    Raises:
        UsageError: n or slots is below 1.
    """
    actions = _actions(n, slots)
    return finish(Chain([stage] * n, input_bytes), actions, f"optimal for stages alike and {slots} slots")


def solve(stages: Sequence[Stage], budget: int, input_bytes: int = 0) -> Plan:
    """Revolve's schedule with as many slots as fit the budget, optimal for stages alike (Griewank & Walther 2000).

    Raises:
        BudgetError: the schedule with one slot does not fit the budget (bytes).
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    n = len(chain)

    def exceeds(slots: int) -> bool:
        return replay(chain, _actions(n, slots))[1].live.total > budget

    slots = bisect_left(range(1, n + 1), True, key=exceeds)
    if slots == 0:
        raise BudgetError("revolve with one slot", budget, replay(chain, _actions(n, 1))[1])
    alike = len(set(stages)) == 1
    proof = f"optimal for {slots} slots" if alike else f"heuristic: optimal for {slots} slots, were all stages alike"
    return finish(chain, _actions(n, slots), proof)


def _actions(n: int, slots: int) -> list[Action]:
    """The actions that reverse n stages."""
    _repetitions(n, slots)  # says what is wrong with them
    actions: list[Action] = []
    segments = [(0, n, slots)]
    while segments:
        start, stop, free = segments.pop()
        if stop - start == 1:
            actions += recorded(start, stop)
            continue
        middle = start + first_checkpoint(stop - start, free)
        actions += swept(start, middle)
        segments += [(start, middle, free), (middle, stop, free - 1)]
    return actions


def first_checkpoint(n: int, slots: int) -> int:
    """How many of n stages to run before the next checkpoint.

    Both parts must be reversible within the repetitions left to them, r for the right and r - 1 for the left one.
    """
    r = _repetitions(n, slots)
    fewest = math.comb(slots + r - 2, slots) if r > 1 else 0
    return max(fewest, n - math.comb(slots - 1 + r, r), 1)


def _repetitions(n: int, slots: int) -> int:
    """The least r such that C(slots + r, slots) >= n."""
    if n < 1 or slots < 1:
        raise UsageError(f"revolve needs at least one stage and one slot, not {n} and {slots}")
    return bisect_left(range(n), n, key=lambda r: math.comb(slots + r, slots))
