from __future__ import annotations

import tracemalloc

import pytest

from memback.errors import MembackError
from memback.notes import memory

H, F, LOSS = 64 * 128 * 4, 64 * 10 * 4, 4


def test_the_ways_hold_what_the_shapes_say():
    section = memory.section(0)
    assert section.ok
    assert [(way.mode, way.keeps, way.saved_bytes) for way in section.ways] == [
        ("retain-all", ("a₁", "h₁", "a₂", "h₂", "f", "L"), 4 * H + F + LOSS),
        ("full", ("h₁", "h₂", "f"), 2 * H + F),
        ("inference", (), 0),
    ]


def test_a_measured_peak_is_more_than_what_is_saved_and_falls_from_way_to_way():
    peaks = [way.peak_bytes for way in memory.section(0).ways]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > 4 * H + F
    assert peaks[1] > 2 * H + F
    assert peaks[2] >= 2 * H


def test_a_tracemalloc_that_traces_already_is_refused():
    tracemalloc.start()
    try:
        with pytest.raises(MembackError, match="tracing already"):
            memory.section(0)
    finally:
        tracemalloc.stop()
