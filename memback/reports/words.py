"""A report in sentences: for the top of a page, and for readers who can't see the picture."""

from __future__ import annotations

from memback.profiling.report import Report, Run
from memback.reports import device
from memback.units import format_bytes_short, format_flops

__all__ = ["facts", "machine", "sentences"]


def facts(report: Report) -> list[str]:
    """How a PyTorch module's step was run, and whose figures they are where these depend on the device."""
    model, data = report.profile.model, report.profile.data
    how = [said for flag, said in _PHASES if model.get("training") == flag]
    if "loss" in data:
        autocast = f", under autocast to {data['autocast']}" if "autocast" in data else ""
        how.append(f"Loss: {data['loss']}{autocast}.")
    said = [" ".join(how)] if how else []
    if report.device is not None:
        return said + [one for one in (device.advice(report), *device.notes(report.device)) if one]
    if report.machine.get("device") in ("cpu", "meta") and not any(run.measured_peak_bytes for run in report.runs):
        said.append("These are a CPU's figures: a GPU's kernels save other values, and its figures differ.")
    return said


_PHASES = (
    (True, "The module is in training mode."),
    (False, "The module is in evaluation mode."),
    ("mixed", "Some parts of the module are in training mode, others in evaluation mode."),
)


def sentences(report: Report) -> list[str]:
    """The comparison of the modes, one sentence a mode, then whether gradients are the same."""
    full = next((run for run in report.runs if run.mode == "full"), None)
    said = [_mode(run, full) for run in report.runs]
    trained = [run for run in report.runs if run.gradient_sha256 is not None]
    if len(trained) > 1:
        names = ", ".join(run.label for run in trained)
        same = len({run.gradient_sha256 for run in trained}) == 1
        said.append(f"The gradients of {names} are {'bit-identical' if same else 'NOT bit-identical'}.")
    elif any(run.measured_peak_bytes is None for run in report.runs):
        said.append("Everything here is predicted: nothing was allocated, and no gradient was computed.")
    return said


def _mode(run: Run, full: Run | None) -> str:
    peak = format_bytes_short(run.peak.total_bytes)
    if not run.saved_bytes:
        return f"{run.label} saves nothing; its peak is {peak}."
    share = ""
    if full is not None and full is not run and full.saved_bytes:
        share = f", {run.saved_bytes / full.saved_bytes:.2f} times what full does"
    cost = ""
    if run.recomputed_flops and run.flops:
        more = 100 * run.recomputed_flops / run.flops
        cost = f", and recomputes {format_flops(run.recomputed_flops)} ({more:.1f} % of the forward pass)"
    return f"{run.label} saves {format_bytes_short(run.saved_bytes)}{share}{cost}; its peak is {peak}."


def machine(report: Report) -> str:
    """Where the report was made."""
    return ", ".join(
        f"{name.removesuffix('_bytes')} {format_bytes_short(value)}"
        if name.endswith("_bytes") and isinstance(value, int)
        else f"{name} {value}"
        for name, value in report.machine.items()
    )
