"""What memback predicts for each case: written to predicted.json, or compared with it.

    python -m tests.device.predictions [--write] [CASE ...]

runs on any build of PyTorch, with the libraries of requirements.txt. A CASE is a name, or how some begin.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import memback.bridges.torch as bridge
from memback.bridges.torch.device.cards import card
from memback.bridges.torch.device.exchange import on_card
from memback.bridges.torch.device.training import optimizer_on_card
from tests.device.cases import CASES, Case, Step
from tests.device.figures import STEPS, chosen, differences, import_libraries, in_child

PREDICTED = Path(__file__).with_name("predicted.json")


def predicted(case: Case) -> dict[str, Any]:
    """A case's figures, named as those observed, and what is not modelled of it, by op."""
    step = case.build()
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(case.cudnn_attention)
    try:
        return _by_hand(case, step) if step.accumulate > 1 or step.zeroed_late else _profiled(case, step)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _profiled(case: Case, step: Step) -> dict[str, Any]:
    device = bridge.profile(
        step.module,
        *step.args,
        kwargs=step.kwargs,
        loss=step.loss,
        modes=["full"],
        dry=True,
        autocast=torch.bfloat16 if step.autocast else None,
        device=f"cuda:{case.card}",
        optimizer=step.optimizer,
    ).device
    assert device is not None
    figures = ("forward_bytes", "allocated_peak_bytes", "reserved_peak_bytes")
    found = {of: {name: getattr(getattr(device, of), name) for name in figures} for of in ("first", "steady")}
    return {"static_bytes": device.static_bytes, **found, "unmodelled": dict(device.unmodelled)}


def _by_hand(case: Case, step: Step) -> dict[str, Any]:
    """A step that is not forward, backward and update, one after the other."""
    named = card(case.card)
    with on_card(named, step.module, (step.args, step.kwargs), (step.loss,)) as (there, (args, kwargs)):
        allocator = there.mode.memory.allocator
        static = allocator.allocated_bytes
        optimizer = optimizer_on_card(step.optimizer, step.module, there)

        def forward() -> Any:
            with torch.autocast("cuda", torch.bfloat16, enabled=step.autocast):
                return step.loss(step.module(*args, **kwargs))

        taken = [_train(step, forward, optimizer, allocator) for _ in range(STEPS)]
        unmodelled = dict(there.mode.unmodelled)
    return {"static_bytes": static, "first": taken[0], "steady": taken[-1], "unmodelled": unmodelled}


def _train(step: Step, forward: Callable[[], Any], optimizer: Any, allocator: Any) -> dict[str, int]:
    """As :func:`tests.device.figures.train`, on a card that is not there."""
    allocator.reset_peaks()
    forward_bytes = 0
    for _ in range(step.accumulate):
        before = allocator.allocated_bytes
        loss = forward()
        forward_bytes = max(forward_bytes, allocator.allocated_bytes - before)
        if step.zeroed_late:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        del loss
    optimizer.step()
    if not step.zeroed_late:
        optimizer.zero_grad(set_to_none=True)
    return {
        "forward_bytes": forward_bytes,
        "allocated_peak_bytes": allocator.allocated_peak_bytes,
        "reserved_peak_bytes": allocator.reserved_peak_bytes,
    }


def write(cases: dict[str, Any]) -> None:
    """Write predicted.json, a line a case, in the order of the cases; those of cases that are gone are dropped."""
    lines = [f"  {json.dumps(name)}: {json.dumps(cases[name])}" for name in CASES if name in cases]
    PREDICTED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--write", action="store_true", help="write predicted.json instead of comparing with it")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_libraries()
    wrong = 0
    for case in chosen(options.cases):
        found = in_child(functools.partial(predicted, case))
        stored = json.loads(PREDICTED.read_text(encoding="utf-8")) if PREDICTED.exists() else {}
        if "error" in found:
            print(f"{case.name}: {found['error']}", flush=True)
            wrong += 1
        elif options.write:
            write(stored | {case.name: found})
        elif lines := list(differences(stored.get(case.name, {}), found)):
            print(f"{case.name}: {'; '.join(lines)}", flush=True)
            wrong += 1
    print(f"{len(chosen(options.cases))} cases, {wrong} with a difference or an error")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
