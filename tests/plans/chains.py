"""Chains to plan for, and all persistent schedules of a short one, written out from the definition."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache

from hypothesis import strategies as st

from memback.plans import Action, Backward, Forward, Keep, Stage


def mixed(n: int, seed: int, largest: int = 9) -> list[Stage]:
    """Stages of random sizes up to ``largest`` units."""
    r = random.Random(seed)
    return [
        Stage(
            r.randint(1, 9),
            r.randint(1, 9),
            r.randint(0, largest),
            saved_bytes=r.choice([0, r.randint(0, 2 * largest)]),
            gradient_bytes=r.choice([None, r.randint(0, largest)]),
            forward_workspace=r.choice([0, r.randint(0, largest)]),
            backward_workspace=r.choice([0, r.randint(0, largest)]),
            parameter_gradient_bytes=r.choice([0, r.randint(0, largest // 2)]),
        )
        for _ in range(n)
    ]


@st.composite
def chains(draw: st.DrawFn, longest: int = 12, alike: bool | None = None) -> tuple[list[Stage], int]:
    """A chain of stages, of few different ones or of one, and the bytes of its input."""
    costs = st.one_of(st.integers(0, 9), st.floats(0, 10))
    sizes = st.integers(0, draw(st.sampled_from([3, 20, 10**6])))
    stage = st.builds(
        Stage, costs, costs, sizes, sizes, st.one_of(st.none(), sizes), sizes, sizes, st.one_of(st.just(0), sizes)
    )
    n = draw(st.integers(1, longest))
    if draw(st.booleans()) if alike is None else alike:
        return [draw(stage)] * n, draw(st.sampled_from([0, 5]))
    kinds = draw(st.lists(stage, min_size=1, max_size=5))
    return [draw(st.sampled_from(kinds)) for _ in range(n)], draw(st.sampled_from([0, 5]))


@cache
def schedules(s: int, t: int, save_everything: bool = True) -> Sequence[tuple[Action, ...]]:
    """All persistent schedules that reverse stages s … t - 1 once activation s is held."""
    return tuple(_schedules(s, t, save_everything))


def _schedules(s: int, t: int, save_everything: bool) -> Iterator[tuple[Action, ...]]:
    if t == s + 1:
        yield Forward(s, Keep.EVERYTHING), Backward(s)
        return
    if save_everything:
        for rest in schedules(s + 1, t, save_everything):
            yield Forward(s, Keep.EVERYTHING), *rest, Backward(s)
    for k in range(s + 1, t):
        run = Forward(s, Keep.INPUT), *(Forward(stage, Keep.NOTHING) for stage in range(s + 1, k))
        for right in schedules(k, t, save_everything):
            for left in schedules(s, k, save_everything):
                yield *run, *right, *left
