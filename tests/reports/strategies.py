"""Reports as hypothesis makes them: any names, any sizes, but sums that hold."""

from __future__ import annotations

from hypothesis import strategies as st

from memback.profiling.report import (
    Arguments,
    Event,
    Layer,
    Peak,
    Profile,
    Report,
    Run,
    SavedValue,
    Seconds,
)

sizes = st.integers(0, 2**50)
names = st.text(max_size=30)
paths = names | st.sampled_from(["", "blocks.0.fc", "blocks.1.fc", "blocks.2.fc", "blocks.3.fc"])
durations = st.floats(0, 1e6, allow_nan=False)
phases = st.sampled_from(["forward", "backward", "recompute"])


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, ...]:
    made: list[SavedValue] = []
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        shared = draw(st.lists(st.sampled_from(made), unique_by=lambda v: v.buffer, max_size=2)) if made else []
        own = [
            SavedValue(name=name, bytes=size, origin=draw(names), source="net.py:7", buffer=len(made) + i)
            for i, (name, size) in enumerate(draw(st.lists(st.tuples(names, sizes), max_size=2)))
        ]
        made += own
        rows.append(draw(layer(own, shared)))
    return tuple(rows)


@st.composite
def layer(draw: st.DrawFn, own: list[SavedValue], shared: list[SavedValue]) -> Layer:
    return Layer(
        path=draw(paths),
        op=draw(names),
        call=draw(st.integers(0, 3)),
        output_shape=tuple(draw(st.lists(st.integers(0, 4096), max_size=4))),
        dtype=draw(st.sampled_from(["float32", "bfloat16", ""])),
        saved_bytes=sum(value.bytes for value in own),
        shared_bytes=sum(value.bytes for value in shared),
        parameter_bytes=draw(sizes),
        flops=draw(sizes),
        seconds=draw(st.none() | durations),
        recomputed=draw(st.booleans()),
        saved=(*own, *shared),
        count=draw(st.integers(1, 3)),
    )


@st.composite
def runs(draw: st.DrawFn) -> Run:
    rows = draw(layers())
    mode = draw(st.sampled_from(["retain-all", "full", "checkpoint", "inference"]))
    parts = {part: draw(sizes) for part in ("saved", "gradients", "recomputed", "workspace", "outputs")}
    total = sum(parts.values())
    predicted = draw(st.none() | st.just(total))
    return Run(
        mode=mode,
        policy=draw(names) if mode == "checkpoint" else None,
        saved_bytes=sum(row.saved_bytes for row in rows),
        predicted_peak_bytes=predicted,
        measured_peak_bytes=draw(st.none() | (st.just(total) if predicted is None else sizes)),
        rss_peak_bytes=draw(st.none() | sizes),
        bookkeeping_bytes=draw(st.none() | sizes),
        allocator_peak_bytes=draw(st.none() | sizes),
        reserved_peak_bytes=draw(st.none() | sizes),
        gradient_bytes=draw(sizes),
        seconds=draw(st.none() | st.builds(Seconds, forward=durations, backward=durations, recompute=durations)),
        steps_timed=draw(st.integers(0, 9)),
        flops=draw(sizes),
        recomputed_flops=draw(sizes),
        loss=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        gradient_sha256=draw(st.none() | st.sampled_from(["a" * 64, "b" * 64])),
        peak=Peak(phase=draw(phases), path=draw(paths), op=draw(names), **parts),
        layers=rows,
        timeline=tuple(draw(st.lists(events, max_size=3))),
    )


events = st.builds(Event, sizes, names, st.integers(0, 99), sizes, sizes, paths, names, phases)

plain_data = st.dictionaries(names, st.none() | st.booleans() | st.integers(-(2**60), 2**60) | names, max_size=3)

reports = st.builds(
    Report,
    memback=names,
    created=names,
    machine=plain_data,
    profile=st.builds(
        Profile, name=names, model=plain_data, data=plain_data, dtype=names, sha256=st.none() | st.just("c" * 64)
    ),
    arguments=st.builds(Arguments, parameter_bytes=sizes, buffer_bytes=sizes, input_bytes=sizes, optimizer_bytes=sizes),
    runs=st.lists(runs(), max_size=4).map(tuple),
)
