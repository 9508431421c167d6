"""The replay of PyTorch's caching allocator: what PyTorch's own did in recorded steps, and what must always hold."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memback.errors import UsageError
from memback.units import MIB
from tests.device.digests import digest
from tests.device.pure import pure

allocators, confs, replays = pure("allocator"), pure("allocator_conf"), pure("replay")
RECORDED = sorted((Path(__file__).parent / "traces").glob("*.json.gz"))


def recorded() -> list[Any]:
    runs = []
    for path in RECORDED:
        trace = json.loads(gzip.decompress(path.read_bytes()))
        for run in trace["runs"]:
            of = f"{path.name.removesuffix('.json.gz')} {run['conf'] or 'plain'} {run['memory_bytes'] or 'ample'}"
            runs.append(pytest.param(trace, run, id=of))
    return runs


@pytest.mark.parametrize(("trace", "run"), recorded())
def test_a_recorded_step_is_replayed_to_the_byte(trace: dict[str, Any], run: dict[str, Any]) -> None:
    capacity = run["memory_bytes"] or trace["capacity"]
    allocator = allocators.CachingAllocator(confs.parse_conf(run["conf"]), capacity)
    blocks, places, peaks = [], [], []
    for number, event in enumerate(trace["events"][: run["event_count"]]):
        if number in run["marks"]:
            peaks.append([allocator.allocated_peak_bytes, allocator.reserved_peak_bytes])
            allocator.reset_peaks()
        if event > 0:
            blocks.append(allocator.allocate(event))
            places.append(blocks[-1].start)
        else:
            allocator.free(blocks[event])
    peaks.append([allocator.allocated_peak_bytes, allocator.reserved_peak_bytes])
    assert peaks[1 : len(run["peaks"]) + 1] == run["peaks"]
    assert digest([place - places[0] for place in places]) == run["places"]
    if run["error"]:
        with pytest.raises(allocators.CudaOutOfMemory) as error:
            allocator.allocate(run["failed"])
        assert str(error.value) == run["error"]
        return
    segments = [[one.size, [(block.size, block.in_use) for block in one.blocks]] for one in allocator.segments()]
    assert digest(segments) == run["segments"]


SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:20",
    "expandable_segments:True,max_split_size_mb:20",
    "roundup_power2_divisions:[1:2,4:8,>:4]",
    "large_segment_size_mb:64,per_process_memory_fraction:0.7,garbage_collection_threshold:0.3",
)
SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 2 * MIB), st.integers(MIB, 60 * MIB))
REQUESTS = st.lists(st.one_of(SIZES, st.integers(-30, -1), st.just(0)), max_size=60)
"""Sizes; negative: which of the blocks in use is freed; 0: the cache is emptied."""


def carried_out(allocator: Any, requests: list[int]) -> list[Any]:
    """Carry out random requests, those that fail too, and return the blocks in use."""
    blocks: list[Any] = []
    for request in requests:
        if request == 0:
            allocator.empty_cache()
        elif request < 0 and blocks:
            allocator.free(blocks.pop(request % len(blocks)))
        elif request > 0:
            with contextlib.suppress(allocators.CudaOutOfMemory):
                blocks.append(allocator.allocate(request))
    return blocks


@given(REQUESTS, st.sampled_from(SETTINGS), st.sampled_from([None, 200 * MIB]))
def test_blocks_tile_their_segments_and_add_up(requests: list[int], conf: str, capacity: int | None) -> None:
    allocator = allocators.CachingAllocator(confs.parse_conf(conf), capacity)
    blocks = carried_out(allocator, requests)
    end = 0
    for segment in allocator.segments():
        assert segment.start >= end
        end = segment.start
        for block in segment.blocks:
            assert block.start == end
            end += block.size
        assert end == segment.start + segment.size
        for one, other in itertools.pairwise(segment.blocks):
            assert one.in_use or other.in_use, "free neighbours are merged"
    shown = [block for segment in allocator.segments() for block in segment.blocks if block.in_use]
    assert len(shown) == len(blocks)
    assert all(block.size >= block.requested for block in shown)
    assert sum(block.size for block in shown) == allocator.allocated_bytes <= allocator.allocated_peak_bytes
    assert sum(segment.size for segment in allocator.segments()) == allocator.reserved_bytes
    assert allocator.allocated_bytes <= allocator.reserved_bytes <= allocator.reserved_peak_bytes
    assert capacity is None or allocator.reserved_peak_bytes <= capacity


@given(REQUESTS, st.sampled_from(SETTINGS))
def test_when_all_is_freed_each_segment_is_one_block_and_can_be_given_back(requests: list[int], conf: str) -> None:
    allocator = allocators.CachingAllocator(confs.parse_conf(conf), 1000 * MIB)
    for block in carried_out(allocator, requests):
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    assert all(len(segment.blocks) == 1 for segment in allocator.segments())
    allocator.empty_cache()
    assert allocator.segments() == ()
    assert allocator.reserved_bytes == 0


@given(REQUESTS)
def test_a_replay_says_what_the_allocator_says(requests: list[int]) -> None:
    allocator, events, in_use = allocators.CachingAllocator(), [replays.Mark("step")], []
    blocks: dict[int, Any] = {}
    for number, request in enumerate(requests):
        if request > 0:
            blocks[number] = allocator.allocate(request)
            in_use.append(number)
            events.append(replays.Alloc(number, request, f"owner {number}"))
        elif request < 0 and in_use:
            handle = in_use.pop(request % len(in_use))
            allocator.free(blocks.pop(handle))
            events.append(replays.Free(handle))
        else:
            allocator.empty_cache()
            events.append(replays.EmptyCache())
    result = replays.replay(events)
    peak = result.phases["step"]
    assert (peak.allocated_bytes, peak.reserved_bytes) == (
        allocator.allocated_peak_bytes,
        allocator.reserved_peak_bytes,
    )
    shown = [block for segment in peak.segments for block in segment.blocks]
    assert sum(block.size for block in shown if block.in_use) == peak.allocated_bytes
    assert sum(block.size for block in shown) == peak.allocated_bytes + peak.fragmentation_bytes
    assert result.error is None


def test_each_phase_has_its_own_peaks_and_its_own_picture() -> None:
    alloc, free, mark = replays.Alloc, replays.Free, replays.Mark
    events = [
        alloc("parameters", 4 * MIB, "model"),
        mark("first"),
        alloc("activations", 30 * MIB, "layer"),
        free("activations"),
        alloc("state", 4 * MIB, "optimizer"),
        mark("steady"),
        alloc("activations", 28 * MIB, "layer"),
    ]
    result = replays.replay(events, card="cuda:t4")
    assert list(result.phases) == ["", "first", "steady"]
    assert [peak.allocated_bytes // MIB for peak in result.phases.values()] == [4, 34, 36]
    assert [peak.reserved_bytes // MIB for peak in result.phases.values()] == [20, 50, 50]
    assert [peak.event for peak in result.phases.values()] == [0, 2, 6]
    assert [(peak.start_bytes // MIB, peak.end_bytes // MIB) for peak in result.phases.values()] == [
        (0, 4),
        (4, 8),
        (8, 36),
    ]
    owners = [[block.owner for segment in peak.segments for block in segment.blocks] for peak in result.phases.values()]
    assert owners == [["model", ""], ["model", "", "layer"], ["model", "optimizer", "", "layer", ""]]
    assert result.phases["steady"].fragmentation_bytes == 14 * MIB


def test_a_block_that_is_not_split_counts_as_a_whole() -> None:
    events = [replays.Alloc("a", 19 * MIB + 1), replays.Free("a"), replays.Mark("again"), replays.Alloc("b", 19 * MIB)]
    peak = replays.replay(events).phases["again"]
    assert (peak.start_bytes, peak.end_bytes, peak.allocated_bytes) == (0, 20 * MIB, 20 * MIB)


def test_nothing_is_taken_for_an_empty_tensor() -> None:
    peak = replays.replay([replays.Alloc(0, 0), replays.Free(0)]).phases[""]
    assert (peak.allocated_bytes, peak.reserved_bytes, peak.event, peak.segments) == (0, 0, -1, ())


def test_a_replay_ends_where_the_card_has_no_memory_left() -> None:
    events = [replays.Mark("step"), *(replays.Alloc(number, 3 * 2**30, f"layer {number}") for number in range(8))]
    error = replays.replay(events, card="cuda:t4", other_bytes=600 * MIB).error
    assert (error.event, error.phase, error.owner, error.requested_bytes) == (5, "step", "layer 4", 3 * 2**30)
    assert error.message.startswith(
        "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 14.75 GiB of which 2.16 GiB is"
        " free. Including non-PyTorch memory, this process has 12.59 GiB memory in use. Of the allocated memory 12.00"
        " GiB is allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated. If reserved but"
    )
    assert len(error.segments) == 4


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([replays.Free("a")], "event 0 frees 'a', which is not allocated"),
        ([replays.Alloc("a", 1), replays.Alloc("a", 1)], "event 1 allocates 'a', which is allocated already"),
        ([replays.Mark("a"), replays.Mark("a")], "event 1 begins the phase 'a' for a second time"),
    ],
)
def test_events_that_cannot_be_are_refused(events: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replays.replay(events)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("foo:1", "Unrecognized key 'foo' in Accelerator allocator config."),
        ("expandable_segments", "it ends after 'expandable_segments', where a value is expected"),
        ("expandable_segments:true", "Expected 'True' or 'False' for expandable_segments but got 'true'"),
        ("max_split_size_mb:10", "CachingAllocator option max_split_size_mb too small, must be >= 20"),
        ("max_split_size_mb:20,large_segment_size_mb:30", "max_split_size_mb too small, must be >= 30"),
        ("max_split_size_mb:x", "max_split_size_mb 'x' is no whole number"),
        ("max_non_split_rounding_mb:10", "CachingAllocator option max_non_split_rounding_mb too small, must be >= 20"),
        ("large_segment_size_mb:10", "CachingAllocator option large_segment_size_mb must be > 10 MB"),
        ("garbage_collection_threshold:2", "garbage_collect_threshold is invalid, set it in (0.0, 1.0)"),
        ("garbage_collection_threshold:x", "garbage_collection_threshold 'x' is no number"),
        ("per_process_memory_fraction:2", "per_process_memory_fraction is invalid, set it in [0.0, 1.0]"),
        ("roundup_power2_divisions:3", "For roundups, the divisions has to be power of 2"),
        ("roundup_power2_divisions:[256:3]", "the divisions has to be power of 2 or 0 to disable roundup"),
        ("roundup_power2_divisions:[255:2]", "For roundups, the intervals have to be power of 2"),
        ("roundup_power2_divisions:[256:2", "it ends after"),
        ("roundup_power2_divisions:[256]", "expected ':' after '256', not ']'"),
        ("backend:foo", "Unknown allocator backend, options are native and cudaMallocAsync"),
        ("backend:cudaMallocAsync", "the driver manages the memory of backend:cudaMallocAsync"),
        ("expandable_segments:True;max_split_size_mb:20", "but got 'True;max_split_size_mb'"),
        ("expandable_segments:True,,max_split_size_mb:20", "Unrecognized key ','"),
    ],
)
def test_a_setting_that_pytorch_refuses_is_refused(conf: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        confs.parse_conf(conf)
    assert f"allocator setting {conf!r}: " in str(error.value)


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        ("[1:2,4:8,16:1,>:16]", [2, 0, 8, 0, 1] + [16] * 11),
        ("[256:1,512:2,1024:4,>:8]", [1] * 9 + [2, 4] + [8] * 5),
        ("[4:2,8:4]", [2, 2, 2, 4] + [0] * 12),
        ("[>:4]", [0] + [4] * 15),
        ("[64:8,>:4]", [8] * 7 + [4] * 9),
        ("4", [4] * 16),
    ],
)
def test_divisions_are_read_as_pytorch_reads_them(conf: str, expected: list[int]) -> None:
    assert list(confs.parse_conf(f"roundup_power2_divisions:{conf}").roundup_divisions) == expected


@given(st.text(alphabet="expandablesgmnt_izbcordupw2v:,[]>TrueFals0189 .", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        confs.parse_conf(text)
