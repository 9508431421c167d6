"""Every shipped profile that runs for real, under plans for six budgets: the measured peak is within the budget."""

from __future__ import annotations

import pytest

from memback.plans.model.planning import Planning
from memback.profiling import definition
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.profiling.workload import Workload

pytestmark = pytest.mark.long

PROFILES = [name for name in definition.shipped() if not definition.load(name).dry]
SHARES = (0.0, 0.15, 0.3, 0.5, 0.75, 1.0)


@pytest.mark.parametrize("name", PROFILES)
def test_the_measured_peak_is_within_the_budget_and_the_gradients_are_the_same_bits(name):
    work = Workload.build(definition.load(name))
    x, y = work.batch(0)
    step = Step(lambda: work.loss(x, y), work.model, work.optimizer)
    planning = Planning(step)
    full = step.account(Mode("full"))
    least, most = planning.leanest().budget, planning.everything.budget
    for share in SHARES:
        budget = least + int(share * (most - least))
        plan = planning.plan(budget, "chain")
        mode = Mode("checkpoint", plan)
        account = step.account(mode)
        measured, _ = step.measure(mode, account.ledger)
        assert measured.bytes <= budget
        assert account.gradient_sha256 == full.gradient_sha256
        assert sum(row.saved_bytes for row in account.ledger.rows) == plan.saved_bytes


@pytest.mark.parametrize("name", PROFILES)
def test_the_frontier_rises_and_falls_strictly(name):
    work = Workload.build(definition.load(name), dry=True)
    x, y = work.batch(0)
    points = Planning(Step(lambda: work.loss(x, y), work.model, work.optimizer)).frontier()
    assert [p.budget for p in points] == sorted({p.budget for p in points})
    assert [p.extra_flops for p in points] == sorted({p.extra_flops for p in points}, reverse=True)
