"""What PyTorch's own host code says that each step of steps.py takes: written to expected_steps.json, or compared.

python tests/device/stub/launch.py PYTHON -m tests.device.step_figures [--write] [--print] [STEP ...]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.device.figures import STEPS as TIMES
from tests.device.figures import differences, in_child, stub_of
from tests.device.steps import STEPS

EXPECTED = Path(__file__).with_name("expected_steps.json")


def run(build: Callable[[Any], Callable[[], Any]]) -> dict[str, Any]:
    """Train a few steps on the GPU, and return the figures of the first and of a steady step, in bytes."""
    os.environ.update(stub_of("h200"))
    torch.zeros(1, device="cuda")  # the device is there before it is measured
    step = build("cuda")
    gc.collect()
    static = torch.cuda.memory_allocated()
    taken = []
    for _ in range(TIMES):
        torch.cuda.reset_peak_memory_stats()
        step()
        taken.append(
            {
                "allocated_peak_bytes": torch.cuda.max_memory_allocated(),
                "reserved_peak_bytes": torch.cuda.max_memory_reserved(),
            }
        )
    return {"static_bytes": static, "first": taken[0], "steady": taken[-1]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP")
    parser.add_argument("--write", action="store_true", help="write expected_steps.json instead of comparing with it")
    parser.add_argument("--print", action="store_true", help="print each step's figures as a line of JSON")
    options = parser.parse_args()
    stored = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {"steps": {}}
    chosen = {
        name: build for name, build in STEPS.items() if not options.steps or name.startswith(tuple(options.steps))
    }
    wrong = 0
    for name, build in chosen.items():
        observed = in_child(partial(run, build))
        if options.print:
            print(json.dumps({"step": name} | observed), flush=True)
        lines = [observed["error"]] if "error" in observed else []
        if options.write and not lines:
            stored["steps"][name] = observed
        elif not options.write:
            lines += differences(stored["steps"].get(name, {}), observed)
        if lines:
            print(f"{name}: {'; '.join(lines)}", flush=True)
            wrong += 1
    if options.write:
        write({name: stored["steps"][name] for name in STEPS if name in stored["steps"]})
    print(f"{len(chosen)} steps, {wrong} with a difference or an error")
    return min(wrong, 1)


def write(steps: dict[str, Any]) -> None:
    """Write expected_steps.json, a line a step."""
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(figures)}" for name, figures in steps.items())
    torch_is = json.dumps({"torch": torch.__version__, "steps": TIMES})
    EXPECTED.write_text(f'{{\n  "settings": {torch_is},\n  "steps": {{\n{lines}\n  }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
