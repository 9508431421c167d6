"""The cheapest schedule of a short chain, of all that there are: a shortest path over states of memory.

A node is what is held between two actions, an edge an action that is possible there and within the budget, its length
the action's cost. Dropping is an action too, so schedules that are not persistent are among the paths: they drop a
stored value and make it again later, which can pay on small odd chains. The search is A* (Hart, Nilsson & Raphael
1968); each stage whose saves are not held runs at least once more, which bounds the rest from below.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TypeAlias

from memback.errors import UsageError
from memback.plans.actions import Action, Backward, Drop, Forward, Keep, Plan, Stored
from memback.plans.simulate import BudgetError, Chain, Outcome, State, finish, replay
from memback.plans.stage import Stage

__all__ = ["LONGEST", "solve"]

LONGEST = 8
"""Stages of the longest chain that is searched."""

_Length: TypeAlias = Callable[[float, int, Action], float | None]
"""From the length of a path, and the bytes that are live during one more action, to the length with that."""
_Rest: TypeAlias = Callable[[State], float]
_ACTIONS: list[list[Action]] = [
    [Backward(stage), *(Forward(stage, keep) for keep in Keep), *(Drop(stage, stored) for stored in Stored)]
    for stage in range(LONGEST)
]


def solve(stages: Sequence[Stage], budget: int, input_bytes: int = 0) -> Plan:
    """The cheapest of all schedules of a short chain: it may drop a stored value and make it again.

    Raises:
        BudgetError: no schedule fits the budget (bytes); it says what would.
        UsageError: the chain has no stage, or more than 8; or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    if len(chain) > LONGEST:
        raise UsageError(
            f"the exact planner searches all states of memory, which takes too long for a chain of {len(chain)} stages;"
            f" give it at most {LONGEST}, or use the planner 'chain'"
        )
    actions = _cheapest(chain, budget)
    if actions is None:
        raise BudgetError("the leanest of all schedules", budget, replay(chain, _leanest(chain))[1])
    return finish(chain, actions, "optimal among all schedules")


def _cheapest(chain: Chain, budget: int) -> list[Action] | None:
    """The actions of least cost whose peak is within the budget."""

    def length(before: float, live: int, action: Action) -> float | None:
        if live > budget:
            return None
        return before + (chain.stages[action.stage].forward_cost if isinstance(action, Forward) else 0)

    def rest(state: State) -> float:
        return sum(chain.stages[i].forward_cost for i in range(state.remaining) if not state.saved(i))

    return _path(chain, length, rest)


def _leanest(chain: Chain) -> list[Action]:
    """The actions whose peak is least."""
    actions = _path(chain, lambda before, live, action: max(before, live), lambda state: 0)
    if actions is None:
        raise AssertionError("keeping everything is always possible")
    return actions


def _path(chain: Chain, length: _Length, rest: _Rest) -> list[Action] | None:
    """The shortest path from the start to where every stage has been reversed; ``rest`` bounds what is left of it."""
    start, order = chain.start(), count()
    best: dict[State, float] = {start: 0}
    came: dict[State, tuple[State, Action]] = {}
    queue: list[tuple[float, int, State]] = [(rest(start), 0, start)]
    done: set[State] = set()
    while queue:
        _, _, state = heapq.heappop(queue)
        if state in done:
            continue
        if state.remaining == 0:
            return _back(came, state)
        done.add(state)
        for action, (live, after) in _possible(chain, state):
            so_far = length(best[state], live, action)
            if so_far is not None and (after not in best or so_far < best[after]):
                best[after], came[after] = so_far, (state, action)
                # Of equals the youngest goes first: it is the furthest along.
                heapq.heappush(queue, (so_far + rest(after), -next(order), after))
    return None


def _back(came: dict[State, tuple[State, Action]], state: State) -> list[Action]:
    actions = []
    while state in came:
        state, action = came[state]
        actions.append(action)
    return actions[::-1]


def _possible(chain: Chain, state: State) -> Iterator[tuple[Action, Outcome]]:
    for stage in range(state.remaining):
        for action in _ACTIONS[stage]:
            done = chain.do(state, action)
            if not isinstance(done, str):
                yield action, done
