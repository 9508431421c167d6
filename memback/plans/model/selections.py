"""Ways to keep a part of what the stages of a chain save: at a price a byte each, by minimum cuts."""

from __future__ import annotations

from memback.plans.model.cut import CutCall, cut
from memback.plans.model.region import Selection
from memback.plans.model.trace import StageLayout

__all__ = ["selections"]

_PRICES = tuple(float(2**exponent) for exponent in range(-3, 18))
"""FLOPs a byte, from ops that make a value by reading another to large matrix products."""
_APART = 0.1
"""A selection counts as another one where it keeps less by this share of all bytes: each costs two dry runs."""


def selections(layout: StageLayout) -> list[tuple[Selection, ...]]:
    """What to keep of each stage at rising prices of a byte; each of the selections keeps clearly less than the last.

    They end before the one that keeps nothing inside of stages, which planners have without them.
    """
    stages = range(len(layout.bounds) - 1)
    problems = [_Problem(layout, stage) for stage in stages]
    solved: dict[tuple[object, ...], frozenset[int]] = {}
    found: list[tuple[Selection, ...]] = []
    least = full = sum(layout.trace.bytes_of(layout.saved_of(i)) for i in stages)
    for price in _PRICES:
        chosen = tuple(problem.solve(price, solved) for problem in problems)
        size = sum(layout.trace.bytes_of(layout.saved_of(i, chosen[i])) for i in stages)
        if not size:
            break
        if size < least - _APART * full:
            found.append(chosen)
            least = size
    return found


class _Problem:
    """The cut of one stage: values are the buffers that it makes, besides those that the chain itself stores."""

    def __init__(self, layout: StageLayout, stage: int) -> None:
        self.calls = [(number, layout.calls[number]) for number in layout.calls_of(stage)]
        fixed = layout.lasting_buffers | layout.activations[stage] | layout.activations[stage + 1]
        buffers = sorted(frozenset().union(*(call.fresh | call.residuals for _, call in self.calls)) - fixed)
        self.number = {buffer: value for value, buffer in enumerate(buffers)}
        self.sizes = tuple(layout.trace.buffers[buffer] for buffer in buffers)
        self.problem = tuple(
            CutCall(
                flops=call.flops,
                reads=self._values(frozenset().union(*(layout.calls[used].made for used in call.uses))),
                makes=self._values(call.fresh | call.residuals),
                keeps=self._values(call.saved),
                bound=bool(call.residuals),
            )
            for _, call in self.calls
        )

    def _values(self, buffers: frozenset[int]) -> frozenset[int]:
        return frozenset(self.number[buffer] for buffer in buffers if buffer in self.number)

    def solve(self, price: float, solved: dict[tuple[object, ...], frozenset[int]]) -> Selection:
        """The selection at a price; stages alike are one problem, whose solution is in ``solved`` then."""
        key = (self.problem, self.sizes, price)
        if key not in solved:
            solved[key] = cut(*key)
        kept = solved[key]
        dropped = {buffer for buffer, value in self.number.items() if value not in kept}
        return Selection(
            stored=frozenset(number for number, call in self.calls if self._values(call.fresh) & kept),
            filled=frozenset(number for number, call in self.calls if not call.saved & dropped),
        )
