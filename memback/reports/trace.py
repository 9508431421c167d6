"""Chrome's trace format, which Perfetto and chrome://tracing open: counters, a slice for every op and every buffer.

A process for every mode. There is no clock in a timeline: one event of it is one microsecond of the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import msgspec

from memback.profiling.report import Report
from memback.reports.timeline import BANDS, Timeline

__all__ = ["render"]

_OPS, _BUFFERS = 1, 2
_OF_RUN = ("mode", "policy", "saved_bytes", "predicted_peak_bytes", "measured_peak_bytes")


def render(report: Report) -> bytes:
    """The report as a trace; a counter's series add up to the live bytes."""
    timelines = enumerate(map(Timeline, report.runs), start=1)
    events = [entry for process, timeline in timelines for entry in _process(timeline, process)]
    about = {
        "name": report.profile.name,
        "created": report.created,
        "memback": report.memback,
        "time": "one microsecond is one event of the timeline, not time by a clock",
        "runs": [{name: getattr(run, name) for name in _OF_RUN} for run in report.runs],
    }
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ns", "otherData": about})


def _process(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": timeline.run.label}}
    yield {"ph": "M", "pid": process, "tid": _OPS, "name": "thread_name", "args": {"name": "ops"}}
    yield from _ops(timeline, process)
    yield from _counters(timeline, process)
    yield from _buffers(timeline, process)
    yield from _peak(timeline, process)


def _ops(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    for (phase, path, op), stretch in groupby(
        enumerate(timeline.events), key=lambda item: (item[1].phase, item[1].path, item[1].op)
    ):
        times = [time for time, _ in stretch]
        yield {
            "ph": "X",
            "pid": process,
            "tid": _OPS,
            "cat": phase,
            "name": op,
            "ts": times[0],
            "dur": len(times),
            "args": {"layer": path, "phase": phase},
        }


def _counters(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    used = [i for i, _ in enumerate(BANDS) if any(total[i] for total in timeline.totals)]
    for time, total in enumerate(timeline.totals):
        sizes = {BANDS[i]: total[i] for i in used}
        yield {"ph": "C", "pid": process, "name": "live bytes", "ts": time, "args": sizes}


def _buffers(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    for life in timeline.lives.values():
        common = {
            "pid": process,
            "tid": _BUFFERS,
            "cat": "buffer",
            "id": f"{process}.{life.buffer}",
            "name": life.origin,
        }
        about = {"bytes": life.bytes, "layer": life.path, "source": life.source}
        yield {"ph": "b", "ts": life.birth, "args": about, **common}
        yield {"ph": "e", "ts": life.death, **common}


def _peak(timeline: Timeline, process: int) -> Iterator[dict[str, Any]]:
    moment = timeline.peak()
    if moment is not None:
        sizes = {"bytes": timeline.run.peak.total_bytes, **moment.parts}
        yield {"ph": "i", "s": "p", "pid": process, "tid": _OPS, "name": "peak", "ts": moment.time, "args": sizes}
