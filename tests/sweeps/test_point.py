from __future__ import annotations

import json
import tracemalloc
from functools import cache

import pytest

from memback.commands import main
from memback.errors import MembackError
from memback.plans.model.planning import RESERVE
from memback.profiling.accounts import EXCHANGED
from memback.profiling.definition import load
from memback.sweeps.point import Done, Task, run
from tests.sweeps.small import grid, numbers, rows_of

SMALL_GPT = load("gpt2-small").with_overrides({"model.layers": "1", "model.width": "48", "model.vocabulary": "64"})


def answer(capsys, *arguments, code=0):
    assert main([*arguments, "--json", "-"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("profile", "settings"),
    [
        ("digits", {"batch": 16, "policy": "sqrt"}),
        ("digits-resnet", {"batch": 3, "dtype": "float64", "policy": "all"}),
        ("source-gpt", {"batch": 2, "sequence": 32, "policy": "selective"}),
        ("vit", {"batch": 2, "optimizer": "sgd"}),
        ("gpt2-small", {"model.layers": 2, "sequence": 64, "dtype": "bfloat16"}),
    ],
)
def test_a_row_has_the_numbers_of_a_dry_profile(profile, settings, capsys):
    one = grid(*(f"{key}={value}" for key, value in settings.items()), profile=profile)
    (row,) = rows_of(one)
    (point,) = one.points
    arguments = [word for key, value in point.overrides for word in ("--set", f"{key}={value}")]
    policy = ["--policy", point.policy] if point.policy else []
    report = answer(capsys, "profile", profile, "--dry", *arguments, *policy)
    assert row.status == "done"
    own = {f: getattr(row.arguments, f) for f in row.arguments.__struct_fields__}
    assert {**own, "sharded_parameter_bytes": 0, "bucket_bytes": 0} == report["arguments"]  # which one rank has not
    for ran in report["runs"]:
        if ran["mode"] == "retain-all":
            continue
        figures = getattr(row, ran["mode"])
        assert figures.saved_bytes == ran["saved_bytes"]
        assert figures.peak_bytes == ran["predicted_peak_bytes"]
        assert figures.flops == ran["flops"]
        assert figures.recomputed_flops == ran["recomputed_flops"]
        for part, found in ran["peak"].items():
            assert (0 if part in EXCHANGED else getattr(figures, f"peak_{part}")) == found
    assert row.policy == report["runs"][2]["policy"]


GPT = ("batch=64", "sequence=32", "model.layers=2")


@cache
def gpt(**options):
    """A GPT's point, most of whose memory are activations."""
    (row,) = rows_of(grid(*GPT, profile="source-gpt", **options))
    return row


@pytest.mark.parametrize("share", [0.45, 0.6, 1.5])
def test_a_row_has_the_numbers_of_a_plan(share, capsys):
    budget = round(gpt().full.peak_bytes * share)
    found = gpt(budget=budget).plan
    assert found.fits
    command = ["plan", "source-gpt", "--batch", "64", "--budget", str(budget), "--planner", "chain"]
    command += ["--set", "model.context=32", "--set", "data.sequence=32", "--set", "model.layers=2"]
    plan = answer(capsys, *command)["plan"]
    assert found.budget_bytes == plan["budget"] == budget
    for name in ("peak_bytes", "saved_bytes", "extra_flops", "optimality"):
        assert getattr(found, name) == plan[name], name
    assert found.peak_bytes + RESERVE <= budget
    assert (found.extra_flops > 0) == (share < 1)
    assert found.least_budget_bytes is None


def test_the_leanest_plan_fits_the_budget_that_it_needs():
    least = gpt(budget=1).plan.least_budget_bytes
    found = gpt(budget=least).plan
    assert found.fits
    assert found.peak_bytes + RESERVE <= least


def test_a_planner_that_is_not_asked_for_everything_makes_its_own_plan():
    one = grid(*GPT, "planner=sqrt,chain", profile="source-gpt", budget=2**40)
    sqrt, chain = rows_of(one)
    assert (sqrt.plan.planner, chain.plan.planner) == ("sqrt", "chain")
    assert chain.plan.extra_flops == 0 < sqrt.plan.extra_flops


def test_points_of_one_model_share_its_runs_and_have_the_same_rows_as_alone():
    one = grid("policy=sqrt,all", "budget=100KiB,2MiB,1GiB", profile=SMALL_GPT)
    together = run(Task(one.profile, one.points), seconds=1000)
    assert together.rest == ()
    assert together.rows == rows_of(one)


def test_a_task_gives_what_it_has_when_its_time_is_over():
    one = grid("policy=none,sqrt,all")
    done = run(Task(one.profile, one.points), seconds=0)
    assert numbers(done.rows) == [0]
    assert done.rest == one.points[1:]


def test_nothing_is_allocated():
    one = grid("batch=64", profile="gpt2-small")
    tracemalloc.start()
    try:
        (row,) = run(Task(one.profile, one.points)).rows
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert row.full.peak_bytes > 2**36
    assert peak < 2**25


def test_a_combination_that_can_not_be_is_a_row_with_its_error():
    good, bad = rows_of(grid("model.width=48,50", profile=SMALL_GPT))
    assert good.status == "done"
    assert bad.status == "failed"
    assert bad.error == "profile gpt2-small: `width` (=50) must be divisible by `heads` (=12)"
    assert bad.full is None
    assert bad.plan is None


def test_what_could_be_run_of_a_failed_point_is_there():
    (row,) = rows_of(grid("policy=selective:attention", budget=10**9))
    assert row.status == "failed"
    assert "finds nothing to checkpoint" in row.error
    assert row.checkpoint is None
    assert row.full.peak_bytes > 0
    assert row.inference.peak_bytes > 0
    assert row.plan.fits


def test_a_defect_is_a_points_and_not_the_sweeps(monkeypatch):
    monkeypatch.setattr("memback.sweeps.point.Workload.build", lambda *_, **__: 1 / 0)
    one = grid("batch=1,2")
    assert run(Task(one.profile, one.points)) == Done(
        [row for row in rows_of(one) if row.error == "ZeroDivisionError: division by zero"]
    )


def test_another_version_of_memback_is_refused():
    one = grid("batch=1")
    with pytest.raises(MembackError, match=r"this process has memback \S+, the sweep 0\.0\.1: install the same"):
        run(Task(one.profile, one.points, version="0.0.1"))
