"""What every shipped profile takes, by mode, by policy and under plans: ``python -m tests.golden.figures``.

It writes ``figures.json`` beside it, an entry a line, so that a change of the engine or of a planner shows as a diff of
figures. ``test_golden.py`` holds the present code against it. Gradients depend on the machine's BLAS too: their hashes
are stored with that of a matrix product, and mean something where this is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memback.errors import MembackError
from memback.plans.model.planning import Planning
from memback.profiling import definition
from memback.profiling.measuring import Prediction
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.profiling.workload import Workload

FILE = Path(__file__).with_name("figures.json")
POLICIES = ("every:2", "sqrt", "all", "selective", "selective:attention")
MODES = (Mode("retain-all"), Mode("full"), *(Mode("checkpoint", policy) for policy in POLICIES), Mode("inference"))
SHARES = (0.0, 0.15, 0.3, 0.5, 0.75)
"""Budgets between the least that there is a plan for and full retention's peak."""
PLANNERS = ("chain", "sqrt", "all")
"""Those whose plans are the same on every machine: a search that ends after some seconds is none of them."""

Figures = dict[str, Any]


def digest(data: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(data).hexdigest()[:16]


def dry(name: str) -> Iterator[tuple[str, Figures]]:
    """Figures of a profile's dry runs by mode, and of its plans by planner and budget."""
    step = Workload.build(definition.load(name), dry=True).predicted_step()
    for mode in MODES:
        try:
            yield f"{name} {mode}", of_run(step.predict(mode))
        except MembackError as error:
            yield f"{name} {mode}", {"error": str(error)}
    planning = Planning(step)
    for planner in PLANNERS:
        least = planning.leanest(planner)
        most = planning.everything.budget
        for share in SHARES:
            plan = planning.plan(least.budget + int(share * (most - least.budget)), planner)
            yield (
                f"{name} {planner} {share}",
                {
                    "budget": plan.budget,
                    "peak": plan.peak_bytes,
                    "saved": plan.saved_bytes,
                    "recomputed": plan.extra_flops,
                    "actions": len(plan.actions),
                },
            )


def of_run(prediction: Prediction) -> Figures:
    """Figures of one dry run."""
    ledger, peak = prediction.ledger, prediction.peak
    events = "\n".join(" ".join(map(str, event)) for event in ledger.events)
    return {
        "saved": ledger.saved_at_end_of_forward or 0,
        "peak": peak.bytes,
        "parts": {part: size for part, size in peak.parts.items() if size},
        "flops": ledger.flops,
        "recomputed": ledger.recomputed_flops,
        "events": len(ledger.events),
        "digest": digest(events.encode()),
    }


def real(name: str) -> Iterator[tuple[str, Figures]]:
    """The gradients' hash of a profile's first training step, by mode."""
    work = Workload.build(definition.load(name))
    step = Step(work.step(), work.model, work.optimizer)
    for mode in MODES:
        if mode.trains:
            try:
                yield f"{name} gradients {mode}", {"blas": blas(), "sha256": step.account(mode).gradient_sha256}
            except MembackError as error:
                yield f"{name} gradients {mode}", {"error": str(error)}


def blas() -> str:
    """What tells machines apart whose matrix products have other bits."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((257, 263), dtype=np.float32) for _ in range(2))
    return digest((a @ b.T).tobytes() + (a.T @ b).tobytes())


def profiles(dry_ones: bool) -> list[str]:
    """Names of the shipped profiles, all of them or those that run for real."""
    return [name for name in definition.shipped() if dry_ones or not definition.load(name).dry]


def main() -> None:
    """Write the figures of the present code."""
    entries: dict[str, Figures] = {}
    for name in profiles(dry_ones=True):
        entries.update(dry(name))
    for name in profiles(dry_ones=False):
        entries.update(real(name))
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(figures)}" for key, figures in entries.items())
    FILE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
