"""Runs one engine on one workload in a process of its own, as its standard input says, line by line.

    python -m benchmarks.worker ENGINE WORKLOAD

``check FILE``   writes the loss and all gradients of one step to FILE (.npz)
``round N``      runs N steps; answers with the seconds that each took, by the clock and by the processor
``memory``       answers with how far the resident set has grown since before the first step, in bytes
``spread N``     has its N busiest threads stay on a core each
``versions``     answers with what the engine is made of

Answers are one line of JSON each. A process of its own keeps one engine's threads, allocator and caches from another's.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from typing import Any

import numpy as np
import psutil

from benchmarks.pinning import pin
from benchmarks.workloads import WORKLOADS


class Worker:
    """An engine with a workload."""

    def __init__(self, engine: str, workload: str) -> None:
        name, _, variant = engine.partition("+")
        if variant:
            from memback.engine.allocator import keep_freed_memory

            keep_freed_memory()
        if variant == "fast":
            from memback.ops.compiled import use_compiled_kernels

            use_compiled_kernels()
        self.module = importlib.import_module(f"benchmarks.engines.{name}")
        self.step = self.module.build(WORKLOADS[workload])
        gc.collect()
        self.resident = self._resident()

    def _resident(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def check(self, path: str) -> bool:
        """Write the loss and the gradients."""
        loss, grads = self.step()
        arrays = grads.arrays() if hasattr(grads, "arrays") else grads
        np.savez(path, loss=np.asarray(loss), **{name: np.asarray(grad) for name, grad in arrays.items()})
        return True

    def round(self, steps: str) -> dict[str, list[float]]:
        """Seconds of each step by the clock and by the processor (all threads of this process).

        One step goes before them untimed, so that the caches are this process's again.
        """
        clock, processor = [], []
        for _ in range(int(steps) + 1):
            began, used = time.perf_counter(), time.process_time()
            result = self.step()
            clock.append(time.perf_counter() - began)
            processor.append(time.process_time() - used)
            del result
        return {"clock": clock[1:], "processor": processor[1:]}

    def spread(self, threads: str) -> bool:
        """Pin the busiest threads to a core each, where the system has a call for it."""
        return pin(int(threads))

    def memory(self) -> int:
        """Growth of the resident set in bytes."""
        return self._resident() - self.resident

    def versions(self) -> dict[str, str]:
        """Packages and their versions."""
        versions: dict[str, str] = self.module.VERSIONS
        return versions


def main() -> None:
    """Answer until the input ends."""
    worker = Worker(*sys.argv[1:3])
    for line in sys.stdin:
        command, *arguments = line.split(maxsplit=1)
        answer: Any = getattr(worker, command)(*(a.strip() for a in arguments))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
