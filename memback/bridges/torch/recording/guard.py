"""Looking before leaping: whether a module's step fits into the memory of its device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memback.bridges.torch.recording.step import DryRunError, Step
from memback.profiling.guard import Available, available_memory, modes_that_fit, refuse_too_large
from memback.profiling.mode import Mode

__all__ = ["check_fits"]


def check_fits(step: Step, modes: Sequence[Mode]) -> None:
    """Refuse modes whose predicted peak is above the memory that is free, before anything is run.

    Raises:
        MembackError: a mode does not fit; the message gives the prediction and what would fit.
    """
    available = _available(step.device)
    try:
        needs = {mode: step.predict(mode).peak.bytes for mode in modes}
    except DryRunError:
        return  # it can't be known beforehand
    refuse_too_large(
        needs, available, lambda: ". ".join([*modes_that_fit(needs, available), "Use a smaller --input or module"])
    )


def _available(device: torch.device) -> Available:
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return Available(free + unused, f"free memory of {torch.cuda.get_device_name(device)}")
