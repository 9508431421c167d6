"""The timeline of a dry run: every buffer's birth, owner and death, the optimiser's update included."""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter

import pytest

import memback as mb
from memback.optim import AdamW
from memback.profiling.report import Run


@pytest.fixture(scope="module", params=["retain-all", "full", "checkpoint", "inference"])
def run(request: pytest.FixtureRequest) -> Run:
    policy = "all" if request.param == "checkpoint" else None
    with mb.dry_run():
        model = mb.models.GPT(layers=3, width=32, heads=2, vocabulary=50, context=16, dropout=0.1)
        optimizer = AdamW(model.parameters(), lr=0.1)
        tokens = mb.ShapeArray.argument((2, 16), "int64")
        report = mb.profile(
            model,
            step=lambda: model.loss(tokens, tokens),
            modes=(request.param,),
            policy=policy,
            optimizer=optimizer,
        )
    return report.runs[0]


def test_a_buffer_is_born_once_by_its_owner_and_dies_at_most_once(run: Run) -> None:
    by_buffer = groupby(sorted(run.timeline, key=attrgetter("buffer", "time")), key=attrgetter("buffer"))
    for _, events in by_buffer:
        birth, *rest = events
        assert birth.kind == "new"
        assert birth.op
        assert len({event.bytes for event in (birth, *rest)}) == 1
        kinds = [event.kind for event in rest]
        assert "new" not in kinds
        assert "free" not in kinds[:-1]


def test_what_lives_on_after_the_step_is_the_gradients_of_parameters_and_the_loss(run: Run) -> None:
    born = {event.buffer: event for event in run.timeline if event.kind == "new"}
    dead = {event.buffer for event in run.timeline if event.kind == "free"}
    left = sum(event.bytes for buffer, event in born.items() if buffer not in dead)
    loss = 4
    assert left == run.gradient_bytes + loss
    assert run.timeline[-1].live_bytes == left


def test_live_bytes_are_those_born_and_not_dead(run: Run) -> None:
    live = 0
    for time, event in enumerate(run.timeline):
        assert event.time == time
        live += event.bytes if event.kind == "new" else -event.bytes if event.kind == "free" else 0
        assert event.live_bytes == live


def test_a_gradient_is_one_from_its_birth(run: Run) -> None:
    gradients = {buffer.buffer for buffer in run.buffers if buffer.origin.startswith("gradient from")}
    births = [event.category for event in run.timeline if event.kind == "new" and event.buffer in gradients]
    assert set(births) == (set() if run.mode == "inference" else {"gradients"})


def test_a_gradient_belongs_to_the_call_that_it_came_from(run: Run) -> None:
    made = [buffer for buffer in run.buffers if buffer.origin == "gradient from matmul (blocks.0.attention.core)"]
    calls = {"inference": set(), "checkpoint": {0}}.get(run.mode, {0, 1})  # what runs again is not counted
    assert {buffer.call for buffer in made} == calls


def test_what_is_held_at_the_end_of_forward_is_what_is_saved(run: Run) -> None:
    holders: dict[int, int] = {}
    for event in run.timeline:
        if event.phase == "forward" and event.kind == "hold":
            holders[event.buffer] = event.bytes
        elif event.phase == "forward" and event.kind == "free":
            holders.pop(event.buffer, None)
    assert sum(holders.values()) == run.saved_bytes


def test_the_peak_is_at_least_what_the_timeline_shows_alive(run: Run) -> None:
    assert run.predicted_peak_bytes is not None
    assert run.predicted_peak_bytes >= max(event.live_bytes for event in run.timeline)


@pytest.mark.parametrize("optimized", [True, False])
def test_the_update_is_part_of_the_step_where_there_is_an_optimiser(optimized: bool) -> None:
    with mb.dry_run():
        model = mb.models.MLP(8, 4, width=300, depth=2)
        optimizer = AdamW(model.parameters(), lr=0.1) if optimized else None
        x, y = mb.ShapeArray.argument((1, 8)), mb.ShapeArray.argument((1,), "int64")
        report = mb.profile(model, step=lambda: model.loss(x, y), modes=("full",), optimizer=optimizer)
    assert (report.runs[0].peak.phase == "update") == optimized
    assert report.arguments.optimizer_bytes == (2 * report.arguments.parameter_bytes if optimized else 0)
