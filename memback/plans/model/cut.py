"""What to keep inside of a stage: a minimum cut between what is there and what backward needs.

At a price of p FLOPs a byte, some values are kept and the others computed again from these so that

    p × bytes kept + FLOPs computed again

is least. With x[c] = 1 where call c is run again and z[v] = 1 where value v is kept,

    z[v] ≥ 1 - x[maker of v]        for each v that backward needs,
    z[v] ≥ x[c] - x[maker of v]     for each call c that reads v,
    x[c] ≥ x[maker of v]            for each call c that keeps v beside residuals, which are kept with it or not at all.

Each row has two calls at most, with opposite signs: this is the linear program of a minimum cut, whose solutions are
whole numbers (Picard 1976, "Maximal closure of a graph and applications to combinatorial problems"). As the price
rises, the solutions run through the corners of the convex hull of what bytes and FLOPs can be traded. PyTorch's
``min_cut_rematerialization_partition`` cuts its graphs in this way too, at one price.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from memback.plans.linear_program import LinearProgram, solve

__all__ = ["CutCall", "cut"]

_SECONDS = 5.0
"""For one cut, which takes milliseconds: what is not found by then keeps everything."""


class CutCall(NamedTuple):
    """A call of the stage, with values by number, except those that are stored in any case.

    Args:
        flops: of running it.
        reads: the values that it reads.
        makes: the values that it makes, residuals among them.
        keeps: the values that its backward needs.
        bound: whether it has residuals, so that what it keeps is kept together.
    """

    flops: int
    reads: frozenset[int]
    makes: frozenset[int]
    keeps: frozenset[int]
    bound: bool


def cut(calls: Sequence[CutCall], sizes: Sequence[int], price: float) -> frozenset[int]:
    """The values that are kept where a byte is worth ``price`` FLOPs; ``sizes`` are bytes by value."""
    maker = {value: number for number, call in enumerate(calls) for value in call.makes}
    program = LinearProgram()
    scale = max(*(call.flops for call in calls), *(price * sizes[value] for value in maker), 1.0)
    again = [program.variable(call.flops / scale) for call in calls]
    kept = {value: program.variable(price * sizes[value] / scale) for value in maker}
    needed = frozenset().union(*(call.keeps for call in calls)) & kept.keys()
    for value in needed:
        program.at_most([(kept[value], -1.0), (again[maker[value]], -1.0)], -1.0)
    for number, call in enumerate(calls):
        for value in call.reads & kept.keys():
            program.at_most([(again[number], 1.0), (kept[value], -1.0), (again[maker[value]], -1.0)], 0.0)
        if call.bound:
            for value in call.keeps & kept.keys() - call.makes:
                program.at_most([(again[maker[value]], 1.0), (again[number], -1.0)], 0.0)
    solution, _ = solve(program, _SECONDS)
    return frozenset(value for value, variable in kept.items() if solution is None or solution[variable] > 0.5)
