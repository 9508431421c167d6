from __future__ import annotations

import pytest
from msgspec.structs import replace as change

from memback.dry.mode import dry_run
from memback.profiling import definition
from memback.profiling.report import Event, Report, Run
from memback.profiling.run import profile
from memback.profiling.workload import Workload
from memback.reports.timeline import BANDS, UNTOLD, Timeline
from memback.reports.tree import tree
from tests.reports import sample


def predicted(name: str) -> Report:
    loaded = definition.load(name)
    work = Workload.build(loaded, dry=True)
    x, y = work.batch(0)
    modes = ("retain-all", "full", "checkpoint", "inference")
    with dry_run():
        return profile(
            work.model,
            step=lambda: work.loss(x, y),
            modes=modes,
            policy=loaded.checkpoint.policy,
            optimizer=work.optimizer,
        )


@pytest.fixture(scope="module", params=["digits", "digits-resnet", "lstm", "source-gpt"])
def report(request: pytest.FixtureRequest) -> Report:
    return predicted(request.param)


def test_categories_add_up_to_the_live_bytes_after_every_event(report: Report) -> None:
    for run in report.runs:
        timeline = Timeline(run)
        assert timeline.told
        assert [sum(total) for total in timeline.totals] == [event.live_bytes for event in run.timeline]


def test_what_is_alive_at_the_peak_adds_up_to_the_peak(report: Report) -> None:
    for run in report.runs:
        timeline = Timeline(run)
        moment = timeline.peak()
        assert moment is not None
        alive = sum(span.bytes for span in timeline.alive(moment.time))
        assert alive + sum(moment.unplaced.values()) + moment.parts["workspace"] == run.peak.total_bytes


def test_the_saved_bytes_are_alive_when_the_forward_pass_ends(report: Report) -> None:
    for run in report.runs:
        if run.mode != "inference":
            timeline = Timeline(run)
            saved = [total[BANDS.index("saved")] for total in timeline.totals[: timeline.forward_end]]
            assert saved[-1] == run.saved_bytes


def test_every_buffer_is_told_with_its_maker_and_line(report: Report) -> None:
    for run in report.runs:
        lives = Timeline(run).lives
        assert set(lives) == {event.buffer for event in run.timeline}
        for life in lives.values():
            assert life.call is not None
            assert life.source.rpartition(":")[2].isdecimal()
            assert 0 <= life.birth < life.death <= len(run.timeline)


def test_the_tree_adds_up_at_every_node(report: Report) -> None:
    for run in report.runs:
        root = tree(run)
        assert root.bytes == run.saved_bytes
        for _, node in root.walk():
            if node.children:
                assert sum(child.bytes for child in node.children.values()) == node.bytes


def with_events(*events: Event) -> Run:
    return change(sample.full(), timeline=events)


def test_a_report_without_categories_has_one_for_all() -> None:
    timeline = Timeline(sample.full())
    assert not timeline.told
    assert [span.category for span in timeline.spans] == [UNTOLD]
    assert [sum(total) for total in timeline.totals] == [sample.HIDDEN, sample.HIDDEN, 0]
    moment = timeline.peak()
    assert moment is not None
    alive = sum(span.bytes for span in timeline.alive(moment.time))
    assert alive + sum(moment.unplaced.values()) + moment.parts["workspace"] == sample.full().peak.total_bytes


def test_a_buffer_moves_between_categories_and_outlives_the_step() -> None:
    timeline = Timeline(
        with_events(
            Event(0, "new", 7, 100, 100, "a", "relu", "forward", "outputs"),
            Event(1, "hold", 7, 100, 100, "b", "relu", "forward", "saved"),
            Event(2, "hold", 7, 100, 100, "b", "relu", "forward", "saved"),
            Event(3, "drop", 7, 100, 100, "b", "relu", "backward", "outputs"),
        )
    )
    assert [(span.category, span.start, span.end) for span in timeline.spans] == [
        ("outputs", 0, 1),
        ("saved", 1, 3),
        ("outputs", 3, 4),
    ]
    assert (timeline.lives[7].birth, timeline.lives[7].death, timeline.lives[7].path) == (0, 4, "a")
    assert timeline.forward_end == 3


def test_events_that_make_no_sense_are_no_error() -> None:
    timeline = Timeline(
        with_events(Event(0, "free", 1, 5, 0, "", "x", "forward"), Event(9, "free", 1, 5, 0, "", "x", "forward"))
    )
    assert timeline.spans == []
    assert timeline.peak() is not None
    assert Timeline(with_events()).peak() is None
