"""What is kept of stages: cuts against brute force, mixtures, and policies, which are never better than plans."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback.plans.model import RESERVE
from memback.plans.model.cut import CutCall, cut
from memback.plans.model.mixing import Mixing
from memback.plans.model.policies import POLICIES
from memback.plans.segments import recorded
from memback.profiling.mode import Mode
from tests.models.small import MODELS
from tests.plans.small import planning_of

# -- cuts


@st.composite
def stages(draw):
    """Calls in order, each of which makes one value, and some a residual; with the sizes of these."""
    calls, sizes = [], []
    outputs = []
    for _ in range(draw(st.integers(1, 5))):
        reads = frozenset(draw(st.lists(st.sampled_from(outputs), max_size=2))) if outputs else frozenset()
        out = len(sizes)
        sizes.append(draw(st.integers(1, 9)))
        makes = {out}
        residual = draw(st.booleans())
        if residual:
            makes.add(len(sizes))
            sizes.append(draw(st.integers(1, 9)))
        keeps = frozenset(v for v in {*reads, *makes} if draw(st.booleans())) | (makes - {out})
        outputs.append(out)
        calls.append(CutCall(draw(st.integers(0, 20)), reads, frozenset(makes), keeps, residual))
    return calls, sizes


def price_of(calls, sizes, price, kept):
    """p x bytes + FLOPs of keeping these values and making again whatever else backward needs."""
    maker = {v: c for c, call in enumerate(calls) for v in call.makes}
    again: set[int] = set()
    todo = [maker[v] for call in calls for v in call.keeps - kept]
    while todo:
        c = todo.pop()
        if c in again:
            continue
        again.add(c)
        todo += [maker[v] for v in calls[c].reads - kept]
        todo += [other for other, call in enumerate(calls) if call.bound and call.keeps & calls[c].makes]
    return price * sum(sizes[v] for v in kept) + sum(calls[c].flops for c in again)


@settings(max_examples=60)
@given(stages(), st.sampled_from([0.25, 1.0, 3.0, 50.0]))
def test_a_cut_is_what_brute_force_finds(stage, price):
    calls, sizes = stage
    kept = cut(calls, sizes, price)
    choices = product([False, True], repeat=len(sizes))
    best = min(price_of(calls, sizes, price, {v for v, keep in enumerate(choice) if keep}) for choice in choices)
    assert price_of(calls, sizes, price, kept) == pytest.approx(best)


# -- mixtures


@pytest.mark.parametrize("name", MODELS)
def test_more_steps_keep_more_and_compute_less(name):
    choices = planning_of(name).staged.choices
    mixing = Mixing(choices, len(choices) - 1)
    mixtures = [mixing.mixed(count).stages for count in range(len(mixing.steps) + 1)]
    for fewer, more in pairwise(mixtures):
        assert sum(stage.saved_bytes for stage in fewer) < sum(stage.saved_bytes for stage in more)
        assert sum(stage.backward_cost for stage in fewer) > sum(stage.backward_cost for stage in more)
    assert all(first.worth >= second.worth for first, second in pairwise(mixing.steps))
    actions = tuple(recorded(0, len(choices[0].stages)))
    assert len(list(mixing.curve(actions, 8))) == 9


# -- policies


@pytest.mark.parametrize("name", MODELS)
def test_no_policy_is_better_than_the_frontier(name):
    planning = planning_of(name)
    points = planning.frontier()
    for policy in POLICIES:
        try:
            prediction = planning.step.predict(Mode("checkpoint", policy))
        except mb.UsageError:
            continue
        cheapest = min(p.extra_flops for p in points if p.budget - RESERVE <= prediction.peak.bytes)
        assert cheapest <= prediction.ledger.recomputed_flops, policy


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_of_a_policy_takes_no_more_than_the_policy_and_changes_no_bit(name):
    planning = planning_of(name)
    full = planning.step.account(Mode("full"))
    for plan in planning.policies:
        policy = plan.optimality.removeprefix("heuristic: the policy ")
        prediction = planning.step.predict(Mode("checkpoint", policy))
        assert plan.peak_bytes <= prediction.peak.bytes
        assert plan.extra_flops <= prediction.ledger.recomputed_flops
        assert planning.step.account(Mode("checkpoint", plan)).gradient_sha256 == full.gradient_sha256
