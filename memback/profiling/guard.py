"""Looking before leaping: whether a step's predicted peak fits into the memory that is really there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from memback.errors import MembackError
from memback.profiling.passes import Mode, Step
from memback.shape_array import NoValuesError
from memback.units import format_bytes

__all__ = ["Available", "available_memory", "check_fits"]

_CANDIDATES = ("sqrt", "all", "selective")


@dataclass(frozen=True)
class Available:
    """Bytes that a process may still take, and what sets that limit."""

    bytes: int
    limit: str


def available_memory(
    cgroup_root: Path = Path("/sys/fs/cgroup"), self_cgroup: Path = Path("/proc/self/cgroup")
) -> Available:
    """What is free on the machine, or what the process's control groups or its own limit allow, whichever is least."""
    best = Available(psutil.virtual_memory().available, "free memory of the machine")
    space = _address_space_left()
    if space is not None and space < best.bytes:
        best = Available(space, "limit of the process's address space (ulimit -v)")
    for folder in _cgroups(cgroup_root, self_cgroup):
        left = _left(folder)
        if left is not None and left < best.bytes:
            best = Available(left, "limit of the control group (container)")
    return best


def _address_space_left() -> int | None:
    """Bytes by which the process's address space may still grow; None where it has no limit."""
    try:
        import resource
    except ImportError:  # there is no such limit on Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    return max(limit - int(psutil.Process().memory_info().vms), 0)


def _cgroups(cgroup_root: Path, self_cgroup: Path) -> list[Path]:
    """The process's control groups that can limit memory, version 2 and version 1, with all groups above."""
    try:
        lines = self_cgroup.read_text().splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        base = (
            cgroup_root if not controllers else cgroup_root / "memory" if "memory" in controllers.split(",") else None
        )
        if base is None:
            continue
        inside = [p for p in path.split("/") if p and p != ".."]
        folders += [base.joinpath(*inside[:depth]) for depth in range(len(inside), -1, -1)]
    return folders


def _left(folder: Path) -> int | None:
    for limit_name, usage_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            if limit == "max":
                return None
            used = int((folder / usage_name).read_text()) - _reclaimable(folder)
            return max(int(limit) - used, 0)
        except (OSError, ValueError):
            continue
    return None


def _reclaimable(folder: Path) -> int:
    """Page cache of files, which counts as used but is given up when memory is wanted."""
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return 0
    return stat.get("inactive_file", stat.get("total_inactive_file", 0))


def check_fits(step: Step, modes: Sequence[Mode], extra_bytes: int = 0, available: Available | None = None) -> None:
    """Refuse modes whose predicted peak is above the available memory, before anything is run.

    Args:
        step: the step, as it would be run.
        modes: the modes that are asked for.
        extra_bytes: arguments that are still to be allocated (a model that was only built dry).
        available: what there is; by default :func:`available_memory`.

    Raises:
        MembackError: a mode does not fit; the message gives the prediction and the policies that would fit.
    """
    available = available_memory() if available is None else available
    for mode in modes:
        try:
            need = step.predict(mode).peak.bytes + extra_bytes
        except NoValuesError:
            return  # a step that takes decisions on values can't be predicted
        if need > available.bytes:
            raise MembackError(
                f"mode {mode} needs {format_bytes(need)} at its peak, but there are {format_bytes(available.bytes)}"
                f" ({available.limit}). {_remedy(step, extra_bytes, available)}, or go ahead with --force"
            )


def _remedy(step: Step, extra_bytes: int, available: Available) -> str:
    fitting = []
    for policy in _CANDIDATES:
        try:
            need = step.predict(Mode("checkpoint", policy)).peak.bytes + extra_bytes
        except MembackError:
            continue
        if need <= available.bytes:
            fitting.append(f"{policy} ({format_bytes(need)})")
    if fitting:
        return f"Policies that would fit: {', '.join(fitting)}: use --mode checkpoint --policy, or a smaller --batch"
    return "No checkpoint policy makes it fit: use a smaller --batch or model"
