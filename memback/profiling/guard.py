"""Whether a step's predicted peak fits into the available memory, checked before anything is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from memback.dry.array import NoValuesError
from memback.errors import MembackError
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.units import KIB, format_bytes_short

__all__ = ["Available", "available_memory", "check_fits", "modes_that_fit", "refuse_too_large"]

_CANDIDATES = ("sqrt", "all", "selective", "selective:attention")


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


def check_fits(
    step: Step,
    modes: Sequence[Mode],
    extra_bytes: int = 0,
    available: Available | None = None,
    option: str = "--mode checkpoint --policy",
) -> None:
    """Refuse modes whose predicted peak is above the available memory, before anything is run.

    Args:
        step: the step, as it would be run.
        modes: the modes that are asked for.
        extra_bytes: what else is still to be allocated: a model that was only built dry, copies.
        available: what there is; by default :func:`available_memory`.
        option: how a policy is asked for.

    Raises:
        MembackError: a mode does not fit; the message gives the prediction and what would fit.
    """
    available = available_memory() if available is None else available
    try:
        needs = {mode: step.predict(mode).peak.bytes + extra_bytes for mode in modes}
    except NoValuesError:
        return  # a step that takes decisions on values can't be predicted
    refuse_too_large(needs, available, lambda: _remedy(step, needs, extra_bytes, available, option))


def refuse_too_large(needs: Mapping[Mode, int], available: Available, remedy: Callable[[], str]) -> None:
    """Refuse modes that need more bytes than are available; ``remedy`` says what to do about it.

    Raises:
        MembackError: there are some.
    """
    too_large = {mode: need for mode, need in needs.items() if need > available.bytes}
    if too_large:
        raise MembackError(
            f"The peak would be {_listed(too_large)}, but there are {_size(available.bytes)}: {available.limit}."
            f" {remedy()}, or go ahead with --force"
        )


def _listed(needs: Mapping[Mode, int]) -> str:
    return ", ".join(f"{_size(need)} in mode {mode}" for mode, need in needs.items())


def _size(size: int) -> str:
    return f"{format_bytes_short(size)} ({size:,} B)" if size >= KIB else f"{size} B"


def _remedy(step: Step, needs: Mapping[Mode, int], extra_bytes: int, available: Available, option: str) -> str:
    policies = {}
    for policy in _CANDIDATES:
        try:
            policies[policy] = step.predict(Mode("checkpoint", policy)).peak.bytes + extra_bytes
        except MembackError:
            continue  # the policy finds nothing in this model
    fitting = [f"{option} {name} with {_size(n)}" for name, n in policies.items() if n <= available.bytes]
    found = []
    if fitting:
        found.append(f"Policies that would fit: {', '.join(fitting)}")
    elif policies:
        found.append("No checkpoint policy makes it fit")
    return ". ".join([*found, *modes_that_fit(needs, available), "Use a smaller --batch or model"])


def modes_that_fit(needs: Mapping[Mode, int], available: Available) -> list[str]:
    """A sentence that names the modes that fit, if any do."""
    modes = [f"--mode {m.name} with {_size(n)}" for m, n in needs.items() if n <= available.bytes and not m.policy]
    return [f"Modes that would fit: {', '.join(modes)}"] if modes else []
