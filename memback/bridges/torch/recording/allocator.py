"""What PyTorch's own allocators gave out while a step ran, scratch memory of kernels included."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Allocated", "allocated"]


@dataclass(frozen=True)
class Allocated:
    """The allocator's highest point above where it was before, in bytes; ``reserved_bytes`` where it keeps a pool."""

    peak_bytes: int
    reserved_bytes: int | None = None


def allocated(run: Callable[[], object], device: torch.device) -> Allocated | None:
    """Run a step, and say what the allocator of its device gave out; None where that can't be told."""
    if device.type == "cuda":
        return _on_cuda(run, device)
    return _on_cpu(run) if device.type == "cpu" else None


def _on_cuda(run: Callable[[], object], device: torch.device) -> Allocated:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    run()
    torch.cuda.synchronize(device)
    peak, most = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return Allocated(peak - before, most - reserved)


def _on_cpu(run: Callable[[], object]) -> Allocated | None:
    """As the profiler hears of it, in this thread: the allocator of the CPU keeps no statistics."""
    if torch._C._autograd._profiler_enabled():
        return None  # somebody else's, which this one would end
    from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

    shapes, memory, stack, flops, modules = False, True, False, False, False
    config = ProfilerConfig(ProfilerState.CPU, shapes, memory, stack, flops, modules, _ExperimentalConfig())
    collects = gc.isenabled()
    gc.disable()  # what other code has left in cycles, and is collected in the midst of it, would count as given back
    torch._C._autograd._enable_profiler_legacy(config)
    try:
        run()
    finally:
        threads = torch._C._autograd._disable_profiler_legacy()
        if collects:
            gc.enable()
    live = peak = 0
    for event in (event for events in threads for event in events):
        if event.kind() == "memory_alloc":
            live += event.cpu_memory_usage()
            peak = max(peak, live)
    return Allocated(peak)
