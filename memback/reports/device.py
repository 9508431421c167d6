"""A training step on a device that was predicted for: whether it fits, what takes it, what would help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memback.profiling.report import Device, DevicePeak, DeviceSegment, DeviceStep, Report
from memback.reports.tables import Cell, Column, Row, Table, bars_of, mebibytes_of, percentages_of
from memback.units import format_bytes_short

__all__ = ["advice", "bars", "fits", "make_up", "notes", "picture", "verdict"]

_SEGMENTS_AT_MOST, _BLOCKS_AT_MOST = 500, 400


def fits(device: Device) -> bool | None:
    """Whether a training step fits on the device; None where none was run."""
    needed = device.needed_bytes
    return None if needed is None else needed <= device.memory_bytes


def verdict(device: Device) -> str:
    """Whether a training step fits, in a sentence."""
    whose = f"cuda:{device.name} ({device.title})"
    needed = device.needed_bytes
    if needed is None:
        return f"These are predicted for {whose}, which has {format_bytes_short(device.memory_bytes)}."
    what = f"a training step {_update(device)} needs {format_bytes_short(needed)}"
    spare = device.memory_bytes - needed
    of = f"of {format_bytes_short(device.memory_bytes)}"
    if spare >= 0:
        return f"It fits on {whose}: {what} {of}, {format_bytes_short(spare)} to spare."
    return f"It does not fit on {whose}: {what} {of}, {format_bytes_short(-spare)} too much."


def _update(device: Device) -> str:
    return f"with {device.optimizer}" if device.optimizer else "without an optimiser"


def advice(report: Report) -> str:
    """What takes the most, and what would make it less."""
    device = report.device
    if device is None or device.steady is None or device.steady.peak is None:
        return ""
    peak = device.steady.peak
    sizes = peak.by_name()
    most = max(sizes, key=sizes.__getitem__)
    share = f"{100 * sizes[most] / peak.total_bytes:.1f} %" if peak.total_bytes else "nothing"
    remedies = ", ".join(_remedies(report, peak, most))
    return f"The most of it is {most}, {share}." + (f" What would help: {remedies}." if remedies else "")


def _remedies(report: Report, peak: DevicePeak, most: str) -> list[str]:
    """Options of ``memback torch`` that make a part less, as far as the step does not have them yet."""
    data, full = report.profile.data, report.reference
    wide, half = "float32" in report.profile.dtype, "bf16" if _has_bfloat16(report.device) else "fp16"
    of_parameters = full is not None and 2 * full.gradient_bytes > peak.gradients
    if most in ("parameters", "optimiser state") or (most == "gradients" and of_parameters):
        found = ["--lora"] * ("lora" not in report.profile.model)
        found += [f"--dtype {half}"] * wide
        return [*found, "an optimiser that keeps less (adafactor, sgd)"]
    if most in ("libraries", "inputs", "buffers"):
        return []
    if most == "fragmentation":
        return ["PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"]
    smaller = (
        "a smaller --batch (--find batch says which one fits)" if data.get("batch") != 1 else "a shorter --sequence"
    )
    return [smaller, *[f"--amp {half}"] * (wide and "autocast" not in data), "a plan (--budget 60%)"]


def _has_bfloat16(device: Device | None) -> bool:
    return device is not None and device.capability >= (8, 0)


def make_up(device: Device) -> Table | None:
    """What is reserved at the peak of the first step and of a steady one; None where that is not known."""
    first, steady = (_sizes(step) for step in (device.first, device.steady))
    if first is None or steady is None:
        return None
    names = [name for name in steady if first[name] or steady[name]]
    last = [steady[name] for name in names]
    reserved = [sum(sizes.values()) for sizes in (first, steady)]
    columns = [
        Column("memory", "key"),
        Column("first step", group=1),
        Column("steady step", group=1),
        Column("MiB", group=1),
        Column("share", group=1),
        Column("", "bar", 1),
    ]
    rows = [
        Row([Cell(name), _bytes(first[name]), _bytes(steady[name]), mib, Cell(share), bar])
        for name, mib, share, bar in zip(
            names, mebibytes_of([*last, reserved[1]]), percentages_of(last), bars_of(last), strict=False
        )
    ]
    whole = mebibytes_of([*last, reserved[1]])[-1]
    total = Row([Cell("reserved"), *map(_bytes, reserved), whole, Cell("100.0 %" if reserved[1] else "–"), Cell("")])
    title = f"A training step on cuda:{device.name}, {_update(device)}: what its peak is made up of"
    return Table(title, columns, rows, total, notes=_below(device))


def _sizes(step: DeviceStep | None) -> Mapping[str, int] | None:
    return None if step is None or step.peak is None else step.peak.by_name()


def _bytes(size: int) -> Cell:
    return Cell(f"{size:,}", "" if size else "faint")


def _below(device: Device) -> Sequence[str]:
    assert device.first is not None
    assert device.steady is not None
    peaks = [format_bytes_short(step.allocated_peak_bytes) for step in (device.first, device.steady)]
    made = [format_bytes_short(step.forward_bytes) for step in (device.first, device.steady)]
    return (
        f"Allocated at the peak: {peaks[0]} in the first step, {peaks[1]} in a steady one; made by forward: {made[0]}"
        f" and {made[1]}. On top comes CUDA's context, taken to be {format_bytes_short(device.context_bytes)}.",
    )


def notes(device: Device) -> list[str]:
    """What a plan changes, what PyTorch would say where a step does not fit, and what is not known."""
    said = []
    if device.planned is not None:
        needed = device.planned.reserved_peak_bytes + device.context_bytes
        fitting = "fits" if needed <= device.memory_bytes else "does not fit"
        said.append(
            f"With the plan a steady step {fitting}: it needs {format_bytes_short(needed)}, of which"
            f" {format_bytes_short(device.planned.allocated_peak_bytes)} are allocated at its peak."
        )
    if fits(device) is False and device.first is not None:
        said.append(
            "It would run where PyTorch's allocator gives unused segments back in time, which takes time."
            if device.out_of_memory is None
            else f"PyTorch would say: {device.out_of_memory.partition(' If reserved but')[0]}"
        )
    if device.assumed:
        said.append(f"Numbers that the step reads are not known, and taken to be 1: at {', '.join(device.assumed)}.")
    return said + [f"Not known of {op}: {what}." for op, what in sorted(device.unmodelled.items())]


# -- as areas


def bars(device: Device) -> list[dict[str, Any]]:
    """The first step and a steady one as bars, in percent of the device's memory or of what is needed, if that is more.

    What the bars have in common: ``limit`` is where the device's memory ends.
    """
    needed = max(device.memory_bytes, device.needed_bytes or 0)
    shown = []
    for name, step in (("first step", device.first), ("steady step", device.steady)):
        sizes = _sizes(step)
        if step is not None and sizes is not None:
            parts = {**sizes, "context": device.context_bytes}
            shown.append(
                {
                    "label": name,
                    "bytes": sum(parts.values()),
                    "limit": 100 * device.memory_bytes / needed,
                    "parts": [
                        {"name": part, "kind": _kind(part), "bytes": size, "width": 100 * size / needed}
                        for part, size in parts.items()
                        if size
                    ],
                }
            )
    return shown


def picture(device: Device) -> dict[str, Any] | None:
    """The segments at the peak of a steady step, the largest first, each a row of blocks; None where they are unknown.

    Small ones are left out where there are many, and neighbouring blocks drawn as one where they are too narrow.
    """
    if not device.segments:
        return None
    segments = sorted(device.segments, key=lambda segment: -segment.bytes)
    drawn = segments[:_SEGMENTS_AT_MOST]
    most = drawn[0].bytes
    rows = [
        {
            "pool": segment.pool,
            "bytes": segment.bytes,
            "width": 100 * segment.bytes / most,
            "blocks": [
                {"name": kind, "kind": _kind(kind), "bytes": size, "width": 100 * size / segment.bytes}
                for kind, size in _drawable(segment)
            ],
        }
        for segment in drawn
    ]
    rest = segments[_SEGMENTS_AT_MOST:]
    return {"rows": rows, "rest": len(rest), "rest_bytes": sum(segment.bytes for segment in rest)}


def _drawable(segment: DeviceSegment) -> list[tuple[str, int]]:
    """A segment's blocks, of which those that are too narrow to be seen are taken into the one before."""
    least, found = segment.bytes / _BLOCKS_AT_MOST, list[tuple[str, int]]()
    for kind, size in segment.blocks:
        name = kind.replace("_", " ").replace("optimizer", "optimiser")
        if found and size < least:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((name, size))
    return found


def _kind(name: str) -> str:
    """A part's name as styles have it."""
    return name.replace(" ", "-")
