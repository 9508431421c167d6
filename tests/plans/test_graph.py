"""Schedules of graphs over their fixed order, against trying all of them."""

from __future__ import annotations

import pytest

from memback.errors import UsageError
from memback.plans import Compute, Discard, Reverse, Stored, graph
from memback.plans.graph import milp
from memback.plans.graph.schedule import everything, unfold
from memback.plans.graph.search import (
    Graph,
    GraphBudgetError,
    IllegalGraphActionError,
    Node,
    simulate,
)
from tests.plans.graphs import Trial, small

ENOUGH = 10**12


def once(g: Graph) -> float:
    return sum(node.cost + node.backward_cost for node in g.nodes)


@pytest.mark.parametrize("seed", range(100))
def test_the_cheapest_schedule_is_that_of_brute_force(seed):
    g = small(3 + seed % 3, seed)
    trial = Trial(g)
    least, most = int(trial.leanest()), simulate(g, unfold(g, everything(g)))[1]
    for budget in sorted({least, (2 * least + most) // 3, (least + 2 * most) // 3}):
        plan = graph.solve(g, budget)
        assert plan.cost - once(g) == trial.cheapest(budget)
        assert simulate(g, plan) == (plan.cost, plan.peak_bytes)
        assert plan.peak_bytes <= budget
        assert plan.gap == 0
    assert trial.cheapest(least - 1) is None
    with pytest.raises(GraphBudgetError) as raised:
        graph.solve(g, least - 1)
    assert raised.value.minimum_bytes == least
    assert raised.value.leanest.cost - once(g) == trial.cheapest(least)


def test_a_larger_graph_s_schedules_fit_and_cost_less_the_more_there_is_room_for():
    g = small(14, 5)
    most = simulate(g, unfold(g, everything(g)))[1]
    with pytest.raises(GraphBudgetError) as raised:
        graph.solve(g, 0, 2.0)
    least = raised.value.minimum_bytes
    before = float("inf")
    for share in range(6):
        budget = least + share * (most - least) // 5
        plan = graph.solve(g, budget, 2.0)
        assert simulate(g, plan) == (plan.cost, plan.peak_bytes)
        assert plan.peak_bytes <= budget
        assert plan.gap is not None
        assert plan.cost / (1 + plan.gap) <= before
        before = min(before, plan.cost)
    assert plan.cost == once(g)


def test_what_is_nearly_free_is_computed_again_rather_than_what_is_dear():
    """h = x W (dear), then its GELU (cheap): both outputs are needed; there is room for one."""
    pair = [Node(1000, 8, (), ()), Node(1, 8, (0,), (0,)), Node(1000, 8, (1,), (1,)), Node(1, 8, (2,), (2,))]
    g = Graph((*pair, Node(1, 1, (3,), (3,))))
    full = graph.solve(g, ENOUGH)
    plan = graph.solve(g, full.peak_bytes - 1)
    assert plan.optimality == "optimal over a fixed order"
    assert 0 < plan.cost - full.cost <= 2


def test_the_gap_that_a_bound_leaves_is_reported():
    g = small(5, 1)
    least = int(Trial(g).leanest())
    plan = graph.solve(g, least)
    assert plan.cost > once(g)
    labelled = milp._labelled(g, plan, 0.0)
    assert labelled.gap == pytest.approx(plan.cost / once(g) - 1)
    assert labelled.optimality == f"feasible, at most {100 * labelled.gap:.2g} % above the optimum over a fixed order"


def test_pinned_values_are_stored_in_any_case():
    g = Graph(tuple(Node(1, 2 if i == 2 else 20, (i - 1,) if i else (), (i - 1,) if i else ()) for i in range(6)))
    plan = graph.solve(g, graph.solve(g, ENOUGH).peak_bytes - 1, pinned=3)
    assert plan.cost > once(g)
    assert Discard(2) not in plan.actions[:12]


CHAIN = Graph(tuple(Node(1, 10, (i - 1,) if i else (), (i - 1,) if i else (), saved_bytes=i == 1) for i in range(3)))
FORWARD = [Compute(0), Compute(1, True), Compute(2)]


@pytest.mark.parametrize(
    ("actions", "index", "reason"),
    [
        ([Compute(1)], 0, "the forward pass comes to node 0 first"),
        ([Compute(0), Reverse(0)], 1, "the forward pass has not come to node 1 yet"),
        ([Compute(3)], 0, "there is no node 3"),
        ([*FORWARD, Reverse(1)], 3, "node 2 has to be reversed first"),
        ([*FORWARD, Reverse(2), Reverse(2)], 4, "node 2 has been reversed already"),
        ([*FORWARD, Reverse(2), Compute(2)], 4, "node 2 has been reversed already"),
        ([*FORWARD, Compute(1)], 3, "the output of node 1 is stored already"),
        ([*FORWARD, Discard(1), Reverse(2)], 4, "the output of node 1, which it needs, is not stored"),
        ([*FORWARD, Discard(0), Discard(1), Compute(1)], 5, "the output of node 0, which it uses, is not stored"),
        ([*FORWARD, Discard(1), Compute(1, True)], 4, "the saves of node 1 are stored already"),
        ([*FORWARD, Discard(1), Discard(1)], 4, "the output of node 1 is not stored"),
        ([*FORWARD, Discard(2, Stored.SAVES)], 3, "the saves of node 2 are not stored"),
        (
            [*FORWARD, Discard(1, Stored.SAVES), Reverse(2), Reverse(1)],
            5,
            "the saves of node 1 are not stored",
        ),
        ([*FORWARD, Reverse(2), Reverse(1)], 5, "node 0 has not been reversed"),
    ],
)
def test_the_first_action_that_can_t_be_done_is_named(actions, index, reason):
    with pytest.raises(IllegalGraphActionError, match=f"^action {index} of the plan .* is not possible: {reason}"):
        simulate(CHAIN, actions)


def test_an_output_that_is_both_stored_and_alive_is_counted_once():
    stored = [*FORWARD, Reverse(2), Reverse(1), Reverse(0)]
    # three outputs, the saves, dL/d(output 2), which whoever asks for backward brings, and dL/d(output 1)
    assert simulate(CHAIN, stored) == (3, 51)
    # forward never holds more than two outputs that are not stored, and the saves
    lean = [Compute(0), Compute(1), Discard(1), Compute(2), Discard(2)]
    again = [Compute(1, True), Reverse(2), Reverse(1), Reverse(0)]
    assert simulate(CHAIN, [*lean, *again]) == (4, 41)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "a graph without nodes"),
        ((Node(-1, 1),), "cost of node 0 must be a finite number from 0 up, not -1"),
        ((Node(1, -1),), "output_bytes of node 0 must be a whole number of bytes from 0 up, not -1"),
        ((Node(1, 1, (0,)),), "node 0 uses .*: it can use the outputs of earlier nodes alone"),
        ((Node(1, 1, (), (1,)),), "node 0 needs .* no later node's output"),
    ],
)
def test_a_graph_that_is_none_is_refused(nodes, message):
    with pytest.raises(UsageError, match=message):
        Graph(nodes)


def test_solving_says_nothing_on_standard_output(capfd):
    g = small(5, 3)
    graph.solve(g, int(Trial(g).leanest()))
    assert capfd.readouterr() == ("", "")
